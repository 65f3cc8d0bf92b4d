"""Do attention kernels read past the end of K and V? Theirs end where a page ends; beyond it are NaN, or
nothing is mapped."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from conformance_bench import Bench

from benchmarks.gpu.probe_memory import tensor_device
from benchmarks.gpu.raw_tensor import float32_at

_HEADS, _DIM, _GROUP = 8, 128, 4
_RECORD_BYTES = _HEADS * _DIM * 2  # of a token's K, or V
_SKIPPED = 24  # tokens at the start, so that the length is no multiple of a kernel's tile
_PAGES = 2
_QUERIES = (1, 64)
KERNELS = ("FLASH_ATTENTION", "CUDNN_ATTENTION", "EFFICIENT_ATTENTION", "seqused_k")


def over_read(
    kernel: str | Callable, beyond: str, b: Bench, device: str | None = None
) -> Iterator[tuple[str, Any]]:
    """The relative error against float32 arithmetic, for one query and for many: NaN where what lies beyond
    is let through."""
    import torch

    from vmm.benchmarks.attention_kernels import reference, relative_error

    device = device or tensor_device()
    torch.manual_seed(0)
    keys, values = (_ending_at_a_page(b, beyond, device) for _ in "KV")
    run = _kernel(kernel) if isinstance(kernel, str) else kernel
    heads = _HEADS if kernel == "EFFICIENT_ATTENTION" else _GROUP * _HEADS  # that one knows no groups
    for queries in _QUERIES:
        q = torch.randn(1, queries, heads, _DIM, dtype=torch.bfloat16, device=device)
        expected = _without_causality(reference, q, keys, values)
        try:
            error = relative_error(run(q, keys, values), expected)
        except (RuntimeError, NotImplementedError) as refused:
            yield f"{queries} queries", f"{type(refused).__name__}: {refused}"[:200]
            if b.cuda.cuCtxSynchronize():
                return
        else:
            yield f"{queries} queries, relative error", error


def _ending_at_a_page(b: Bench, beyond: str, device: str) -> Any:
    """[1, tokens, heads, dim]"""
    import torch

    base = b.reserve(_PAGES + 2)
    for at in range(_PAGES + (beyond == "NaN")):
        b.map(base + at * b.page, b.create())
        b.allow(base + at * b.page)
    tokens = _PAGES * b.page // _RECORD_BYTES
    whole = float32_at(base, ((_PAGES + 1) * b.page // 4,), device).view(torch.bfloat16)
    elements = _PAGES * b.page // 2
    if beyond == "NaN":
        whole[elements:] = float("nan")
    part = whole[:elements].view(1, tokens, _HEADS, _DIM)
    part.normal_()
    return part[:, _SKIPPED:]


def _kernel(name: str) -> Callable:
    import torch
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.nn.functional import scaled_dot_product_attention

    from vmm.benchmarks.attention_kernels import seqused_lengths

    def by_sdpa(q: Any, k: Any, v: Any) -> Any:
        heads_first = [each.transpose(1, 2) for each in (q, k, v)]
        grouped = q.shape[2] != k.shape[2]
        with sdpa_kernel(getattr(SDPBackend, name)):
            return scaled_dot_product_attention(*heads_first, enable_gqa=grouped).transpose(1, 2)

    def by_lengths(q: Any, k: Any, v: Any) -> Any:
        used = torch.tensor([k.shape[1]], dtype=torch.int32, device=q.device)
        return torch.cat([seqused_lengths(q[:, at : at + 1], k, v, used) for at in range(q.shape[1])], 1)

    return by_lengths if name == "seqused_k" else by_sdpa


def _without_causality(reference: Callable, q: Any, k: Any, v: Any) -> Any:
    """``reference`` is causal for several queries."""
    import torch

    return torch.cat([reference(q[:, at : at + 1], k, v) for at in range(q.shape[1])], 1)


QUESTIONS = {
    f"10 {kernel}, beyond the page {beyond}": partial(over_read, kernel, beyond)
    for beyond in ("NaN", "unmapped")
    for kernel in KERNELS
}
