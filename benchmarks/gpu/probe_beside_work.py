"""Probe 3, its first part: whether calls wait for work that runs, and how long they take beside it."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator
from typing import Any

from conformance_bench import Bench
from cuda_calls import NOT_READY, access, properties

from benchmarks.gpu.probe_times import MIB, Stopwatch, summary

_WORK_BYTES = 256 * MIB  # what one memset of the long work fills
_MEMSETS = 800  # below the depth at which launches wait
_SLEEP_CYCLES = 400_000_000  # 0.2 s at 2 GHz


def beside_long_work(
    b: Bench, work_bytes: int = _WORK_BYTES, memsets: int = _MEMSETS
) -> Iterator[tuple[str, Any]]:
    """Each call while a stream is busy, and whether the work was still running when it returned: if it never
    is, the call waits for it."""
    buffer = b.cuda.get_number("cuMemAlloc", work_bytes)
    kinds = {"memsets": lambda stream: _memsets(b, stream, buffer, work_bytes, memsets)}
    if (sleep := _sleep()) is not None:
        kinds["one kernel"] = sleep
    for kind, start in kinds.items():
        for name, answer in _calls_beside(b, start):
            yield f"{name} beside {kind}", answer
    b.cuda.do("cuMemFree", buffer)


def _memsets(b: Bench, stream: int, buffer: int, size: int, count: int) -> None:
    for _ in range(count):
        b.cuda.do("cuMemsetD8Async", buffer, 1, size, stream)


def _sleep() -> Callable[[int], None] | None:
    """A kernel of torch's that only waits, where torch has a GPU."""
    try:
        import torch
    except ImportError:
        return None
    if not torch.cuda.is_available():
        return None

    def sleep(stream: int) -> None:
        with torch.cuda.stream(torch.cuda.ExternalStream(stream)):
            torch.cuda._sleep(_SLEEP_CYCLES)

    return sleep


def _calls_beside(b: Bench, start: Callable[[int], None]) -> Iterator[tuple[str, Any]]:
    busy, other, over = b.stream(), b.stream(), b.event()
    base, mapped, handle = b.reserve(1), b.reserve(1), ctypes.c_uint64()
    b.map(mapped, b.create())
    b.allow(mapped)
    start(busy)  # once before, so that nothing is loaded or started in what is looked at
    b.cuda.do("cuCtxSynchronize")
    watch = Stopwatch(b)
    open_to, what = access(), properties()
    steps: dict[str, tuple[Any, ...]] = {
        "cuMemCreate": (ctypes.byref(handle), b.page, ctypes.byref(what), 0),
        "cuMemMap": (base, b.page, 0, handle, 0),
        "cuMemSetAccess": (base, b.page, ctypes.byref(open_to), 1),
        "cuMemsetD8Async": (base, 0, b.page, other),
        "cuStreamSynchronize": (other,),
        "cuMemUnmap": (base, b.page),
        "cuMemRelease": (handle,),
    }
    for name, arguments in steps.items():
        start(busy)
        b.cuda.do("cuEventRecord", over, busy)
        watch(name, *arguments)
        running = b.cuda.cuEventQuery(over) == NOT_READY
        yield name, {**summary(watch.times[name]), "work_still_running": running}
        b.cuda.do("cuStreamSynchronize", busy)
