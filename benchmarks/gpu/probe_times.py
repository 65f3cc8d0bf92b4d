"""Probe 2: how long each call takes, by page size, from one thread and from two; set-access over many; the
calls of every step, and zeroing."""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from time import perf_counter
from typing import Any

from conformance_bench import Bench
from cuda_calls import access, properties

MIB = 2**20
SIZES = (2 * MIB, 16 * MIB, 64 * MIB)
_MOST = 200  # calls of a kind in one thread
_IN_ALL = 4096 * MIB  # of memory at a time, or a quarter of what is free
_ROUNDS = 20  # of spans

Times = dict[str, list[float]]


def summary(seconds: list[float]) -> dict[str, float]:
    """Microseconds: nearest-rank percentiles, and the worst."""
    ordered = sorted(1e6 * each for each in seconds)

    def rank(share: float) -> float:
        return round(ordered[min(len(ordered) - 1, int(share * len(ordered)))], 2)

    return {"p50_us": rank(0.5), "p99_us": rank(0.99), "max_us": round(ordered[-1], 2), "n": len(ordered)}


class Stopwatch:
    """Calls of a driver that must succeed, each timed under its name."""

    def __init__(self, b: Bench) -> None:
        self.cuda = b.cuda
        self.times: Times = {}

    def __call__(self, name: str, *arguments: Any) -> None:
        call = getattr(self.cuda, name)
        start = perf_counter()
        result = call(*arguments)
        self.times.setdefault(name, []).append(perf_counter() - start)
        assert result == 0, f"{name}: CUresult {result}"


def call_times(b: Bench, in_all: int = _IN_ALL, sizes: tuple[int, ...] = SIZES) -> Iterator[tuple[str, Any]]:
    """The times of ``count`` pages of each size, step by step: all created, then all mapped, and so on. With
    two threads both are at the same step; ctypes lets go of Python's lock during a call."""
    free, total = ctypes.c_size_t(), ctypes.c_size_t()
    b.cuda.do("cuMemGetInfo", ctypes.byref(free), ctypes.byref(total))
    for size in sizes:
        for threads in (1, 2):
            count = max(1, min(_MOST, min(in_all, free.value // 4) // size // threads))
            together = threading.Barrier(threads)
            with ThreadPoolExecutor(threads) as pool:
                lanes = [pool.submit(_lane, b, size, count, together) for _ in range(threads)]
                times = [lane.result() for lane in lanes]
            for name in times[0]:
                every = [each for lane in times for each in lane[name]]
                yield f"{name}, {size // 1024} KiB, {threads} thread(s)", summary(every)


def _lane(b: Bench, size: int, count: int, together: threading.Barrier) -> Times:
    try:
        return _timed_lane(b, size, count, together)
    except BaseException:
        together.abort()  # or the other thread would wait for ever
        raise


def _timed_lane(b: Bench, size: int, count: int, together: threading.Barrier) -> Times:
    b.cuda.do("cuCtxSetCurrent", b.context)
    watch = Stopwatch(b)
    base, what, open_to = ctypes.c_uint64(), properties(), access()
    together.wait()
    watch("cuMemAddressReserve", ctypes.byref(base), count * size, size, 0, 0)
    handles = [ctypes.c_uint64() for _ in range(count)]
    for handle in handles:
        watch("cuMemCreate", ctypes.byref(handle), size, ctypes.byref(what), 0)
    addresses = range(base.value, base.value + count * size, size)
    together.wait()
    for address, handle in zip(addresses, handles, strict=True):
        watch("cuMemMap", address, size, 0, handle.value, 0)
    together.wait()
    for address in addresses:
        watch("cuMemSetAccess", address, size, ctypes.byref(open_to), 1)
    together.wait()
    for address in addresses:
        watch("cuMemUnmap", address, size)
    together.wait()
    for handle in handles:
        watch("cuMemRelease", handle.value)
    watch("cuMemAddressFree", base.value, count * size)
    return watch.times


def spans(b: Bench, counts: tuple[int, ...] = (1, 8, 64)) -> Iterator[tuple[str, Any]]:
    """One set-access, and one unmap, over many mappings of the smallest size."""
    most = max(counts)
    base = b.reserve(most)
    handles = [b.create() for _ in range(most)]
    for count in counts:
        watch = Stopwatch(b)
        for _ in range(_ROUNDS):
            for at in range(count):
                b.cuda.do("cuMemMap", base + at * b.page, b.page, 0, handles[at], 0)
            watch("cuMemSetAccess", base, count * b.page, ctypes.byref(access()), 1)
            watch("cuMemUnmap", base, count * b.page)
        for name, seconds in watch.times.items():
            yield f"{name} over {count} mappings", summary(seconds)


def event_times(b: Bench, rounds: int = 2000) -> Iterator[tuple[str, Any]]:
    """The calls of a step that maps nothing, from one thread and from two; and whether the driver gives the
    handle of a destroyed stream, event or page to the next one."""
    for threads in (1, 2):
        with ThreadPoolExecutor(threads) as pool:
            lanes = [pool.submit(_events, b, rounds) for _ in range(threads)]
            times = [lane.result() for lane in lanes]
        for name in times[0]:
            yield f"{name}, {threads} thread(s)", summary([each for lane in times for each in lane[name]])
    for kind, flags in (("Stream", 1), ("Event", 2)):
        first = b.cuda.get_number(f"cu{kind}Create", flags)
        b.cuda.do(f"cu{kind}Destroy", first)
        yield (
            f"the handle of a destroyed {kind.lower()} comes again",
            first in [b.cuda.get_number(f"cu{kind}Create", flags) for _ in range(8)],
        )


def _events(b: Bench, rounds: int) -> Times:
    b.cuda.do("cuCtxSetCurrent", b.context)
    watch, stream = Stopwatch(b), b.stream()
    event, now = ctypes.c_void_p(), ctypes.c_void_p()
    capturing, mode = ctypes.c_int(), ctypes.c_int(2)
    for _ in range(rounds):
        watch("cuCtxGetCurrent", ctypes.byref(now))
        watch("cuCtxSetCurrent", b.context)
        watch("cuStreamIsCapturing", stream, ctypes.byref(capturing))
        watch("cuThreadExchangeStreamCaptureMode", ctypes.byref(mode))
        watch("cuEventCreate", ctypes.byref(event), 2)
        watch("cuEventRecord", event, stream)
        watch("cuStreamWaitEvent", stream, event, 0)
        watch("cuStreamSynchronize", stream)
        watch("cuEventQuery", event)
        watch("cuEventDestroy", event)
    return watch.times


def zeroing(
    b: Bench, sizes: tuple[int, ...] = (2 * MIB, 16 * MIB, 64 * MIB, 256 * MIB)
) -> Iterator[tuple[str, Any]]:
    """How long memory takes to be set to zero, by the size of one call, until it is; and what a page holds
    that was written, released and created anew."""
    pages = max(1, max(sizes) // b.page)
    base = b.reserve(pages)
    for at in range(pages):
        b.map(base + at * b.page, b.create())
    b.allow(base, pages)
    stream = b.stream()
    for size in sizes:
        times = []
        for _ in range(_ROUNDS):
            start = perf_counter()
            b.cuda.do("cuMemsetD32Async", base, 0, size // 4, stream)
            b.cuda.do("cuStreamSynchronize", stream)
            times.append(perf_counter() - start)
        yield f"{size // 1024} KiB", summary(times)
    yield "bytes of pages created anew", sorted(_bytes_anew(b) for _ in range(4))


def _bytes_anew(b: Bench) -> int:
    base, byte = b.reserve(1), ctypes.create_string_buffer(1)
    for _ in range(2):
        handle = b.cuda.get_number("cuMemCreate", b.page, ctypes.byref(properties()), 0)
        b.cuda.do("cuMemMap", base, b.page, 0, handle, 0)
        b.allow(base)
        b.cuda.do("cuMemcpyDtoH", byte, base, 1)
        b.cuda.do("cuMemsetD8", base, 7, b.page)
        b.cuda.do("cuCtxSynchronize")
        b.cuda.do("cuMemUnmap", base, b.page)
        b.cuda.do("cuMemRelease", handle)
    return byte.raw[0]
