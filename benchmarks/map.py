"""What each call of a driver costs, and a page that grows a cache against the other ways to get memory.

Times are microseconds of wall time of one call from Python. ``p50`` and ``p99`` are the smallest samples that
half, or 99 in 100, of the samples do not exceed: of fewer than 100 samples, p99 is the longest.

Metrics, for pages of S MiB with N pages in a call (CUDA has no call for several pages: there the driver makes
N calls of map, and one each of set_access and unmap for N adjacent pages):

- ``{create,map,set_access,unmap,release}_us_{p50,p99}_{S}mib_{N}``: one call; create and release take one
  page a call, so those are of one of N pages in a row. On the host create commits the memory and set_access
  makes it present; neither leaves anything to the first touch.
- ``repetitions_{S}mib_{N}``: how often the N pages went through all five.
- ``grow_page_us``, ``grow_page_us_p99``: what a growing cache pays for a page that lies free in the pool: map
  and set_access of one page of the driver's default size (``default_page_bytes``). p50 unless said.
- ``grow_2mib_us``, ``grow_2mib_us_p99``: the same of 2 MiB, which is what the peers get.
- ``{peer}_over_grow_2mib``: the peer's p50 ÷ grow_2mib_us; above 1, ours is faster.
- ``core_over_bindings_{call}`` (CUDA): p50 of one page of 2 MiB by our core ÷ through cuda-bindings.

Peers: 2 MiB of usable memory (map_peers.py says how) and the five calls through cuda-bindings, as
``{name}_us`` (p50) and ``{name}_us_p99``. Peers and ours take turns, one call of each a round.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from time import perf_counter

from vmm import _core
from vmm.benchmarks.map_pages import Pages
from vmm.benchmarks.map_peers import BLOCK_BYTES, PEERS, LeftOut, Once, bindings
from vmm.benchmarks.report import Report, device_name, environment, ordinal, rounded
from vmm.host_memory import available_bytes
from vmm.units import format_bytes

DEVICES = ("cpu", "cuda")

PAGES_MIB = (2, 16, 64)
PAGES_PER_CALL = (1, 8, 64)
SECONDS = 2.0  # for each of these nine; more only where FEWEST repetitions take longer
PEERS_SECONDS = 8.0
FEWEST, MOST = 3, 1000  # repetitions
SHARE_OF_MEMORY = 1 / 4  # of what is available; what would take more is skipped, and said to be


def run(progress: Callable[[str], None], device: str) -> Report:
    report = Report("map", device_name(device), environment=environment("torch", "cuda-bindings"))
    on_cpu = device == "cpu"
    if "stand-in" in report.device:
        report.environment["stand-in"] = "not a GPU: no figure here is a performance figure"
    if on_cpu:
        report.environment["transparent_hugepages"] = _huge_pages()
    driver = _core.HostDriver() if on_cpu else _core.CudaDriver(ordinal(device))
    report.environment["default_page_bytes"] = driver.default_page_bytes
    _single_calls(report, driver, device, progress)
    progress("peers")
    left_out = _peers(report, driver, device)
    if not on_cpu:
        progress("the same calls through cuda-bindings")
        left_out += _second_caller(report, driver, device)
    report.environment["left_out"] = ", ".join(left_out) or "nothing"
    report.metrics = rounded(report.metrics.items())
    report.peers = dict(rounded(report.peers.items()))
    return report


def _single_calls(report: Report, driver: _core.Driver, device: str, progress: Callable[[str], None]) -> None:
    skipped = []
    for mib in PAGES_MIB:
        for count in PAGES_PER_CALL:
            what, page_bytes = f"{count} x {mib} MiB", mib * 2**20
            free_bytes = available_bytes if device == "cpu" else _core.CudaContext(ordinal(device)).free_bytes
            available = free_bytes()
            if count * page_bytes > SHARE_OF_MEMORY * available:
                skipped.append(f"{what} ({format_bytes(available)} available)")
                continue
            progress(what)
            with Pages(driver, page_bytes, count) as pages:
                report.metrics[f"repetitions_{mib}mib_{count}"] = _repeat(pages.live, SECONDS)
            for call, seconds in pages.seconds.items():
                report.metrics[f"{call}_us_p50_{mib}mib_{count}"] = _us(seconds, 50)
                report.metrics[f"{call}_us_p99_{mib}mib_{count}"] = _us(seconds, 99)
    report.environment["skipped"] = ", ".join(skipped) or "nothing"


def _peers(report: Report, driver: _core.Driver, device: str) -> list[str]:
    """Growing and the peers, in turns. Which peers were left out, and why."""
    left_out, arms = [], dict[str, Once]()
    with ExitStack() as stack:
        for name, page_bytes in (("grow_page", driver.default_page_bytes), ("grow_2mib", BLOCK_BYTES)):
            pages = stack.enter_context(Pages(driver, page_bytes, place=len(arms) * BLOCK_BYTES))
            pages.create()
            arms[name] = pages.grow
        for name, peer in PEERS[device.partition(":")[0]].items():
            try:
                arms[name] = stack.enter_context(peer(device))
            except LeftOut as reason:
                left_out.append(f"{name} ({reason})")
        seconds: dict[str, list[float]] = {name: [] for name in arms}

        def turn() -> None:
            for name, once in arms.items():
                seconds[name].append(once())

        _repeat(turn, PEERS_SECONDS)
    for name, samples in seconds.items():
        ours = name.startswith("grow")
        where = report.metrics if ours else report.peers
        where[f"{name}_us"], where[f"{name}_us_p99"] = _us(samples, 50), _us(samples, 99)
        if not ours:
            report.metrics[f"{name}_over_grow_2mib"] = _us(samples, 50) / _us(seconds["grow_2mib"], 50)
    return left_out


def _second_caller(report: Report, driver: _core.Driver, device: str) -> list[str]:
    """One page of 2 MiB by our core and through cuda-bindings, in turns."""
    try:
        with (
            bindings(device) as second,
            Pages(driver, BLOCK_BYTES) as ours,
            Pages(second, BLOCK_BYTES) as theirs,
        ):

            def turn() -> None:
                ours.live()
                theirs.live()

            _repeat(turn, SECONDS)
    except LeftOut as reason:
        return [f"bindings ({reason})"]
    for call, samples in theirs.seconds.items():
        report.peers[f"bindings_{call}_us"] = _us(samples, 50)
        report.peers[f"bindings_{call}_us_p99"] = _us(samples, 99)
        report.metrics[f"core_over_bindings_{call}"] = _us(ours.seconds[call], 50) / _us(samples, 50)
    return []


def _repeat(work: Callable[[], object], seconds: float) -> int:
    """How often it was done: until the time is over, FEWEST times at least and MOST at most."""
    end = perf_counter() + seconds
    for done in range(MOST):
        if done >= FEWEST and perf_counter() > end:
            return done
        work()
    return MOST


def _us(seconds: list[float], percent: int) -> float:
    """The percentile, a sample, in microseconds."""
    return 1e6 * sorted(seconds)[math.ceil(percent / 100 * len(seconds)) - 1]


def _huge_pages() -> str:
    """What Linux does with them: they decide what fresh memory costs."""
    folder = Path("/sys/kernel/mm/transparent_hugepage")
    kinds = {"anonymous": "enabled", "shared": "shmem_enabled"}
    try:
        return ", ".join(f"{kind}: {(folder / name).read_text().strip()}" for kind, name in kinds.items())
    except OSError:
        return "not told"
