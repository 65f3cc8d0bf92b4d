"""Attention over our memory against torch.empty, and against a block table: what layouts and pages cost.

Metrics, times divided so that more is better for us but where the name says otherwise:

- ``decode_ratio_G1``, ``_G4``, ``_Gall``: torch.empty's time ÷ ours with so many layers in a token's record,
  by SDPA's FlashAttention in pages of 2 MiB; the geometric mean over models, batches and contexts.
  ``decode_ratio_kvtensor`` is KVTensor, of torch.empty's own strides: what the mapping alone costs.
- ``prefill_ratio_…``: the same, of whole prompts.
- Other kernels and pages are named: ``decode_ratio_G4_seqused_16MiB``, and ``_8b_b16_4k`` is one shape.
- ``ours_over_paged``: our time with G1 ÷ that with blocks of 16 tokens, by one Triton kernel that differs
  only in where it looks a token up; below 1 ours is faster. ``flash_over_paged``: ours by FlashAttention ÷
  the same paged time: there the kernels differ, and the paged one is a simple one of our own.

What is timed is the attention of a few layers in turn, one of whose extents holds all of a model's layers for
Gall. Outputs of all arms are compared in the same run. peers: milliseconds of torch.empty, what was skipped.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from time import monotonic
from typing import Any

import torch
from torch.nn.attention import SDPBackend

from vmm.benchmarks.attention_comparison import Setting, comparison
from vmm.benchmarks.attention_kernels import Kernel, sdpa, seqused
from vmm.benchmarks.attention_paged import paged_kernel
from vmm.benchmarks.attention_results import FLASH, Results
from vmm.benchmarks.attention_shapes import FULL, Model, Scale, split_by_memory
from vmm.benchmarks.attention_timing import timer_for
from vmm.benchmarks.report import Report, device_name, environment, rounded
from vmm.errors import InvalidArgument

DEVICES = ("cuda",)

# cuDNN has an arm of its own, after the others: it makes a plan for every shape and its strides, 0.4 s each
# on a B200 by a report to PyTorch, which would be all the time there is.
_CUDNN_S = 20.0
_CUDNN_SHAPES: dict[str, Any] = {
    "models": FULL.models[:1],
    "decode_batches": (16,),
    "decode_contexts": (4096, 32_768),
    "prefill_contexts": (8192,),
    "page_bytes": FULL.page_bytes[:1],
}


def run(progress: Callable[[str], None], device: str, seconds: float = FULL.total_s) -> Report:
    """``seconds`` at most, but for the shape it is at then and the start of cuDNN's arm."""
    report = Report("attention", device_name(device), environment=environment("torch", "triton"))
    if not torch.cuda.is_available():
        raise InvalidArgument(f"device is {device}; this torch, {torch.__version__}, has no CUDA device")
    with torch.cuda.device(device):
        end = monotonic() + seconds
        results = measured(
            replace(FULL, total_s=seconds - min(_CUDNN_S, seconds / 4)), device, cuda_kernels(), progress
        )
        rest = replace(FULL, total_s=end - monotonic(), **_CUDNN_SHAPES)
        measured(rest, device, {"cudnn": sdpa(SDPBackend.CUDNN_ATTENTION)}, progress, results)
    report.metrics = rounded(results.metrics().items())
    peers = results.peers()
    report.peers = {
        name: value if isinstance(value, str) else float(f"{value:.4g}") for name, value in peers.items()
    }
    return report


def cuda_kernels() -> dict[str, Kernel]:
    return {
        FLASH: sdpa(SDPBackend.FLASH_ATTENTION),
        "seqused": seqused,
    }


def measured(
    scale: Scale,
    device: str,
    kernels: dict[str, Kernel],
    progress: Callable[[str], None],
    earlier: Results | None = None,
) -> Results:
    """Page sizes in turn, then models, then shapes; what no time is left for is skipped and named. Added to
    ``earlier``, which has the paged peer."""
    torch.manual_seed(0)
    paged, what = (None, "") if earlier else paged_kernel(device)
    results = earlier or Results(scale.page_bytes[0], paged_kernel=what)
    setting = Setting(scale, device, timer_for(device, scale.flush_bytes), kernels, paged, results)
    end = monotonic() + scale.total_s
    with torch.no_grad():
        for page_bytes in scale.page_bytes:
            for model in scale.models:
                _measure_model(setting, model, page_bytes, end, progress)
    return results


def _measure_model(
    setting: Setting, model: Model, page_bytes: int, end: float, progress: Callable[[str], None]
) -> None:
    page = f"{page_bytes // 1024} KiB pages"
    skipped = setting.results.skipped
    fitting, too_large = split_by_memory(setting.scale, model, free_bytes(setting.device))
    skipped += [f"{model.name} {shape.phase} {shape.name}: does not fit" for shape in too_large]
    if not fitting or monotonic() > end:
        skipped.append(f"{model.name}, {page}: no time was left")
        return
    progress(f"{model.name}, {page}")
    with comparison(setting, model, page_bytes, max(shape.tokens for shape in fitting)) as held:
        for shape in fitting:
            if monotonic() > end:
                skipped.append(f"{model.name} {shape.phase} {shape.name}, {page}: no time was left")
                continue
            progress(f"{model.name}, {page}, {shape.phase} {shape.name}")
            held.measure(shape)


def free_bytes(device: str) -> int:
    if device == "cpu":
        return 2**40  # tests choose shapes that fit
    torch.cuda.empty_cache()
    return torch.cuda.mem_get_info()[0]
