"""Probe 3: what mapping does to the work it runs beside: a long kernel, and launches of a graph."""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Callable, Iterator
from time import perf_counter
from typing import Any

from conformance_bench import Bench
from cuda_calls import GLOBAL, NOT_READY, access, properties

from benchmarks.gpu.probe_times import MIB, Stopwatch, summary

_WORK_BYTES = 256 * MIB  # what one memset of the long work fills
_MEMSETS = 800  # below the depth at which launches wait
_SLEEP_CYCLES = 400_000_000  # 0.2 s at 2 GHz
_NODES = 20  # of the graph
_SECONDS = 2.0  # of launching beside each kind of background


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


def launch_jitter(b: Bench, seconds: float = _SECONDS) -> Iterator[tuple[str, Any]]:
    """A graph of small memsets launched again and again, as decoding does, while another thread of ours is
    idle, makes a call that touches no memory (what Python's lock alone costs), maps, or creates."""
    base = b.reserve(1)
    b.map(base, b.create())
    b.allow(base)
    stream = b.stream()
    executable = _graph(b, base, stream)
    for name, work in _backgrounds(b).items():
        yield name, _launched(b, executable, stream, work, seconds)


def _graph(b: Bench, base: int, stream: int) -> ctypes.c_void_p:
    graph, executable = ctypes.c_void_p(), ctypes.c_void_p()
    b.cuda.do("cuStreamBeginCapture", stream, GLOBAL)
    for node in range(_NODES):
        b.cuda.do("cuMemsetD8Async", base + 4096 * (node % 16), 1, 4096, stream)
    b.cuda.do("cuStreamEndCapture", stream, ctypes.byref(graph))
    b.cuda.do("cuGraphInstantiateWithFlags", ctypes.byref(executable), graph, 0)
    b.cuda.do("cuGraphLaunch", executable, stream)
    b.cuda.do("cuStreamSynchronize", stream)
    return executable


def _backgrounds(b: Bench) -> dict[str, Callable[[], None] | None]:
    base, handle, version = b.reserve(1), b.create(), ctypes.c_int()
    open_to, what, fresh = access(), properties(), ctypes.c_uint64()

    def ask() -> None:
        b.cuda.do("cuDriverGetVersion", ctypes.byref(version))

    def remap() -> None:
        b.cuda.do("cuMemMap", base, b.page, 0, handle, 0)
        b.cuda.do("cuMemSetAccess", base, b.page, ctypes.byref(open_to), 1)
        b.cuda.do("cuMemUnmap", base, b.page)

    def create() -> None:
        b.cuda.do("cuMemCreate", ctypes.byref(fresh), b.page, ctypes.byref(what), 0)
        b.cuda.do("cuMemRelease", fresh)

    return {"idle": None, "a call without memory": ask, "map and unmap": remap, "create and release": create}


def _launched(
    b: Bench, executable: ctypes.c_void_p, stream: int, work: Callable[[], None] | None, seconds: float
) -> dict[str, Any]:
    launches: list[float] = []
    steps: list[float] = []
    done = 0
    end = threading.Event()

    def background() -> None:
        nonlocal done
        b.cuda.do("cuCtxSetCurrent", b.context)
        while work is not None and not end.is_set():
            work()
            done += 1

    thread = threading.Thread(target=background)
    thread.start()
    until = perf_counter() + seconds
    while perf_counter() < until:
        start = perf_counter()
        b.cuda.do("cuGraphLaunch", executable, stream)
        launched = perf_counter()
        b.cuda.do("cuStreamSynchronize", stream)
        launches.append(launched - start)
        steps.append(perf_counter() - start)
    end.set()
    thread.join()
    return {"launch": summary(launches), "launch_and_end": summary(steps), "in_background": done}
