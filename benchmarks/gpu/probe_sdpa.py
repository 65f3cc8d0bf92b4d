"""Which kernel torch's SDPA takes for decoding and for prompts, and what its first calls of a shape cost."""

from __future__ import annotations

from collections.abc import Iterator
from time import perf_counter
from typing import Any

from conformance_bench import Bench

from benchmarks.gpu.probe_memory import tensor_device

_HEADS, _DIM, _GROUP = 8, 128, 4
_CALLS = 4  # of each kernel: two contexts, each twice


def choices(b: Bench, device: str | None = None, context: int = 4096) -> Iterator[tuple[str, Any]]:
    """With everything that torch allows by itself: what SDPA would choose, and which kernels ran."""
    import torch

    device = device or tensor_device()
    if device != "cpu":
        yield "cudnn_version", torch.backends.cudnn.version()
    yield "cudnn_allowed", torch.backends.cuda.cudnn_sdp_enabled()
    torch.manual_seed(0)
    for dtype in (torch.bfloat16, torch.float32):
        for layers in (1, 4):  # in a token's record: the stride of a token
            for queries in (1, 64):
                name = f"{str(dtype)[6:]}, {queries} queries, {layers} layers in a record"
                try:
                    yield name, _chosen(_states(queries, context, layers, dtype, device), device)
                except RuntimeError as error:
                    yield name, f"{type(error).__name__}: {error}"[:200]
    for backend in ("FLASH_ATTENTION", "CUDNN_ATTENTION"):
        yield f"first and second calls of {backend}, ms", _first_calls(backend, context, device)


def _states(queries: int, context: int, layers: int, dtype: Any, device: str) -> tuple[Any, Any, Any]:
    """q, k, v as SDPA takes them: heads before tokens."""
    import torch

    record = torch.randn(context, layers, 2, _HEADS, _DIM, dtype=dtype, device=device)
    q = torch.randn(1, queries, _GROUP * _HEADS, _DIM, dtype=dtype, device=device)
    k, v = (record[None, :, layers - 1, which] for which in (0, 1))
    return q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)


def _chosen(states: tuple[Any, Any, Any], device: str) -> str:
    import torch
    from torch.nn.attention import SDPBackend
    from torch.nn.functional import scaled_dot_product_attention
    from torch.profiler import ProfilerActivity, profile

    choice = SDPBackend(torch._fused_sdp_choice(*states, enable_gqa=True)).name
    activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * (device != "cpu")
    with profile(activities=activities) as seen:
        scaled_dot_product_attention(*states, enable_gqa=True)
        if device != "cpu":
            torch.cuda.synchronize()
    words = ("attention", "flash", "fmha", "cudnn", "sdpa")
    ran = {event.key for event in seen.key_averages() if any(word in event.key.lower() for word in words)}
    return f"{choice}; ran: {', '.join(sorted(ran))}"[:400]


def _first_calls(backend: str, context: int, device: str) -> list[float] | str:
    """Milliseconds. cuDNN makes a plan for every shape and its strides, so for each step of decoding."""
    import torch
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.nn.functional import scaled_dot_product_attention

    q, k, v = _states(1, context + _CALLS, 1, torch.bfloat16, device)
    times = []
    try:
        for call in range(_CALLS):
            length = context + call // 2
            start = perf_counter()
            with sdpa_kernel(getattr(SDPBackend, backend)):
                scaled_dot_product_attention(q, k[:, :, :length], v[:, :, :length], enable_gqa=True)
            if device != "cpu":
                torch.cuda.synchronize()
            times.append(round(1e3 * (perf_counter() - start), 3))
    except RuntimeError as error:
        return f"{type(error).__name__}: {error}"[:200]
    return times
