"""Probe 6: host and device pages in one range, and how fast kernels read each.

Probe 7, its first part: tensors of torch's over addresses where nothing is mapped.
"""

from __future__ import annotations

import ctypes
import statistics
from collections.abc import Iterator
from time import perf_counter
from typing import Any
from unittest import SkipTest

from conformance_bench import Bench
from cuda_calls import READ_WRITE, SUCCESS, Access, access, properties

from benchmarks.gpu.probe_times import MIB
from benchmarks.gpu.probe_what import WrongData, host_location, named
from benchmarks.gpu.raw_tensor import float32_at

_HALF = 128  # pages of the range in the device, and as many in the host
_ROUNDS = 10


def tensor_device() -> str:
    import torch

    if not torch.cuda.is_available():
        raise SkipTest("torch has no CUDA device")
    return "cuda"


def mixed_range(b: Bench, device: str | None = None, half: int = _HALF) -> Iterator[tuple[str, Any]]:
    """``half`` pages of the device and then as many of the host's memory, in one reservation."""
    import torch

    device = device or tensor_device()
    base = b.reserve(2 * half)
    location, handle = host_location(b), ctypes.c_uint64()
    for at in range(half):
        b.map(base + at * b.page, b.create())
    b.allow(base, half)
    for at in range(half, 2 * half):
        what = properties(location=location)
        result = b.cuda.cuMemCreate(ctypes.byref(handle), b.page, ctypes.byref(what), 0)
        if result != SUCCESS:
            yield "create", named(b.cuda, result)
            return
        b.map(base + at * b.page, handle.value)
    both = (Access * 2)(access(), Access(location, READ_WRITE))
    result = b.cuda.cuMemSetAccess(base + half * b.page, half * b.page, both, 2)
    yield "access_of_both", named(b.cuda, result)
    if result != SUCCESS:
        return
    count = half * b.page // 4
    whole = float32_at(base, (2 * count,), device)
    whole.fill_(1.0)
    for name, part in {"device": whole[:count], "host": whole[count:], "both": whole}.items():
        if part.sum(dtype=torch.float64).item() != part.numel():
            raise WrongData(f"{name}: another sum than was written")
        yield f"{name}_read_gb_per_s", round(4e-9 * part.numel() / _seconds(part, device), 2)


def _seconds(part: Any, device: str) -> float:
    """Median of a whole sum, until its result is there."""
    import torch

    times = []
    for _ in range(_ROUNDS):
        start = perf_counter()
        part.sum()
        if device != "cpu":
            torch.cuda.synchronize()
        times.append(perf_counter() - start)
    return statistics.median(times)


def unmapped_tensor(b: Bench, device: str | None = None) -> Iterator[tuple[str, Any]]:
    """Does torch take a tensor of 1 TiB with nothing mapped, and which views does it make of it? Then a page
    is mapped under it."""
    import torch

    device = device or tensor_device()
    tokens, record = 2**20, 2**18
    size = tokens * record * 4
    base = b.cuda.get_number("cuMemAddressReserve", size, b.page, 0, 0)
    whole = float32_at(base, (tokens, record), device)
    yield "made", str(whole.device)
    if whole.data_ptr() != base:
        raise WrongData("the tensor is elsewhere")
    views = (whole[5:9], whole.view(-1)[::2], whole.t(), whole.as_strided((3, 7), (record, 1), 11))
    yield "views_made", len(views)
    at = 3 * b.page
    b.map(base + at, b.create())
    b.allow(base + at)
    page = whole.view(-1)[at // 4 : (at + b.page) // 4]
    page.copy_(torch.arange(page.numel(), dtype=torch.float32, device=device))
    if page.sum(dtype=torch.float64).item() != sum(range(page.numel())):
        raise WrongData("another sum than was written")
    yield "page_under_it", "written and read"
    b.cuda.do("cuCtxSynchronize")
    b.cuda.do("cuMemUnmap", base + at, b.page)
    b.done("cuMemUnmap", base + at, b.page)
    yield "attributes_of_it_unmapped", f"{tuple(page.shape)} {page.device} {page.is_contiguous()}"
    yield "memory_in_MiB", size // MIB
