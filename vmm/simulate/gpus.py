"""GPUs as a simulation sees them: memory, two speeds, and what the calls of virtual memory cost.

Nothing here was measured by us. Memory is the total that nvidia-smi shows, in public logs of it. Bandwidths
and dense bfloat16 rates (half of what is given "with sparsity") are those of NVIDIA's pages, cited; they were
checked in others that quote them, not there, and "[unchecked]" marks what fewer than two gave.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from vmm.arguments import is_number
from vmm.errors import InvalidArgument
from vmm.simulate.models import read_object


@dataclass(frozen=True)
class CallTimes:
    """Microseconds of one call, for one page of 2 MiB. ``event_us``: recording or asking an event.
    ``wake_us``: from asking the pager until it runs. ``source``: where the figures are from."""

    reserve_us: float
    create_us: float
    map_us: float
    set_access_us: float
    unmap_us: float
    release_us: float
    event_us: float
    wake_us: float
    source: str


@dataclass(frozen=True)
class Gpu:
    """``flops_per_s``: dense bfloat16. ``launch_us``: microseconds to launch a whole iteration, captured as a
    CUDA graph. ``source``: where memory and speeds are from."""

    name: str
    memory_bytes: int
    bandwidth_bytes_per_s: float
    flops_per_s: float
    launch_us: float
    call_times: CallTimes
    source: str


ZERO_COST = CallTimes(0, 0, 0, 0, 0, 0, 0, 0, "no call takes any time")

# The slowest wake-up of DESIGN §4 (29-126 us), on a VM with two cores.
_WAKE_US = 126.0
_EVENT_US = 1.0
_RESERVE_US = 19.0  # 8 GiB, A100: the only figure published
_OURS = f"event {_EVENT_US:g} us: assumed; wake {_WAKE_US:g} us: the slowest of DESIGN §4, on a host"

_A100_TIMES = CallTimes(
    reserve_us=_RESERVE_US,
    create_us=193,
    map_us=1.5,
    set_access_us=36,
    unmap_us=26,
    release_us=23,
    event_us=_EVENT_US,
    wake_us=_WAKE_US,
    source=f"A100, one thread: kvcached's bench_vmm; release: DESIGN §4; {_OURS}",
)
_RTX_PRO_6000_TIMES = replace(
    _A100_TIMES,
    create_us=13.8,
    map_us=1.0,
    set_access_us=69,
    unmap_us=39,
    source=f"RTX PRO 6000: a public probe's file; release: DESIGN §4; reserve: an A100's; {_OURS}",
)
_CALLS = [field.name for field in fields(CallTimes) if field.name != "source"]
_ASSUMED_TIMES = CallTimes(
    **{call: max(getattr(_A100_TIMES, call), getattr(_RTX_PRO_6000_TIMES, call)) for call in _CALLS},
    source=f"assumed: the slower of an A100's and an RTX PRO 6000's published figure of each call; {_OURS}",
)

# 2.5 us and 1 ns a node, for 10 kernels in each of 80 layers: NVIDIA, of Ampere and CUDA 12.6, in
# https://developer.nvidia.com/blog/constant-time-launch-for-straight-line-cuda-graphs-and-other-performance-enhancements/
# (read in two public notes that quote it, not there). The 10 kernels are assumed.
_LAUNCH_US = 2.5 + 0.001 * 10 * 80


def _gpu(name: str, figures: tuple[int, float, float], times: CallTimes, source: str) -> Gpu:
    """``figures``: memory in MiB, bandwidth in GB/s, and teraflops. ``source``: a page of NVIDIA's."""
    memory_mib, gb_per_s, teraflops = figures
    source = f"https://www.nvidia.com/{source}"
    return Gpu(name, memory_mib * 2**20, gb_per_s * 1e9, teraflops * 1e12, _LAUNCH_US, times, source)


_GPUS = (
    _gpu(
        "a100-80gb",
        (81920, 2039, 312),
        _A100_TIMES,
        "content/dam/en-zz/Solutions/Data-Center/a100/pdf/"
        "nvidia-a100-datasheet-us-nvidia-1758950-r4-web.pdf (SXM)",
    ),
    _gpu("h100-80gb", (81559, 3350, 989.5), _ASSUMED_TIMES, "en-us/data-center/h100/ (SXM)"),
    _gpu("h200", (143771, 4800, 989.5), _ASSUMED_TIMES, "en-us/data-center/h200/ (SXM)"),
    _gpu(
        "rtx-pro-6000",
        (97887, 1792, 503.8),
        _RTX_PRO_6000_TIMES,
        "en-us/products/workstations/professional-desktop-gpus/rtx-pro-6000/ (Workstation);"
        " rate: hmc-tech.com/gpu/nvidia-rtx-pro-6000-blackwell-vs-amd-radeon-pro-duo-polaris [unchecked]",
    ),
    _gpu("l4", (23034, 300, 121), _ASSUMED_TIMES, "en-us/data-center/l4/ (rate: [unchecked])"),
)
GPUS: dict[str, Gpu] = {gpu.name: gpu for gpu in _GPUS}


def find_gpu(name: str) -> Gpu:
    """The GPU of that name, in any case. Raises InvalidArgument, naming the known ones."""
    try:
        return GPUS[name.lower()]
    except KeyError:
        raise InvalidArgument(f"gpu is {name!r}; expected one of {', '.join(GPUS)}") from None


def read_call_times(path: Path) -> CallTimes:
    """The medians of one page of 2 MiB in what ``vmm bench map --json`` printed.

    That does not measure reserving, events or the wake-up: these are the figures assumed above. Raises
    InvalidArgument, naming the file, for one that is not such a report, for one of the tests' stand-in for
    CUDA, and for missing or impossible metrics, by name.
    """
    report = read_object(path)
    metrics = report.get("metrics")
    if report.get("bench") != "map" or not isinstance(metrics, dict):
        raise InvalidArgument(f"{path} is not a report of `vmm bench map --json`")
    environment = report.get("environment")
    if isinstance(environment, dict) and "stand-in" in environment:
        raise InvalidArgument(
            f"{path} was made by the tests' stand-in for CUDA: its times say nothing of a GPU"
        )
    measured = ("create_us", "map_us", "set_access_us", "unmap_us", "release_us")
    names = {call: f"{call}_p50_2mib_1" for call in measured}
    if missing := [name for name in names.values() if name not in metrics]:
        raise InvalidArgument(f"{path} has no {', '.join(missing)}")
    return CallTimes(
        reserve_us=_RESERVE_US,
        **{call: _microseconds(path, metrics, name) for call, name in names.items()},
        event_us=_EVENT_US,
        wake_us=_WAKE_US,
        source=f"{path}: medians measured on {report.get('device')}; reserve: an A100's; {_OURS}",
    )


def _microseconds(path: Path, metrics: dict[str, Any], name: str) -> float:
    value = metrics[name]
    if not is_number(value) or not 0 <= value < math.inf:
        raise InvalidArgument(f"{path}: {name} is {value!r}; expected microseconds")
    return float(value)
