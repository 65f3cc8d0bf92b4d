"""Probe 3, its second part: launches of a graph again and again, as decoding does, beside the driver's calls
in another thread, and in another process."""

from __future__ import annotations

import ctypes
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from time import perf_counter
from typing import Any

from conformance_bench import Bench
from cuda_calls import GLOBAL, Cuda, access, properties

from benchmarks.gpu.probe_times import summary

_NODES = 20  # of the graph
_SECONDS = 1.5  # of launching beside each kind of background
_SWITCH_S = 1e-4  # how long a thread of Python keeps another waiting, at most

Background = Callable[[], None]
IDLE, ASKING = "idle", "a call without memory"


def launch_jitter(b: Bench, seconds: float = _SECONDS) -> Iterator[tuple[str, Any]]:
    """``a call without memory`` in another thread is what Python's lock alone costs."""
    base = b.reserve(1)
    b.map(base, b.create())
    b.allow(base)
    stream = b.stream()
    executable = _graph(b, base, stream)
    sys.setswitchinterval(_SWITCH_S)
    yield IDLE, _launched(b, executable, stream, seconds)
    for where, beside in {"thread": _thread, "process": _process}.items():
        for name in backgrounds(b):
            try:
                with beside(b, name) as done:
                    seen = _launched(b, executable, stream, seconds)
                    yield f"{name}, in another {where}", {**seen, "in_background": done()}
            except (AssertionError, OSError, ValueError, subprocess.TimeoutExpired) as error:
                yield f"{name}, in another {where}", f"{type(error).__name__}: {error}"


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


def backgrounds(b: Bench) -> dict[str, Background]:
    base, handle, version = b.reserve(1), b.create(), ctypes.c_int()
    opened, what, fresh = b.reserve(1), properties(), ctypes.c_uint64()
    open_to = access()
    b.map(opened, b.create())

    def ask() -> None:
        b.cuda.do("cuDriverGetVersion", ctypes.byref(version))

    def create() -> None:
        b.cuda.do("cuMemCreate", ctypes.byref(fresh), b.page, ctypes.byref(what), 0)
        b.cuda.do("cuMemRelease", fresh)

    def set_access() -> None:
        b.cuda.do("cuMemSetAccess", opened, b.page, ctypes.byref(open_to), 1)

    def map_and_unmap() -> None:
        b.cuda.do("cuMemMap", base, b.page, 0, handle, 0)
        b.cuda.do("cuMemUnmap", base, b.page)

    def grow() -> None:
        b.cuda.do("cuMemMap", base, b.page, 0, handle, 0)
        b.cuda.do("cuMemSetAccess", base, b.page, ctypes.byref(open_to), 1)
        b.cuda.do("cuMemUnmap", base, b.page)

    return {
        ASKING: ask,
        "create and release": create,
        "set access": set_access,
        "map and unmap": map_and_unmap,
        "map, set access and unmap": grow,
    }


@contextmanager
def _thread(b: Bench, name: str) -> Iterator[Callable[[], int]]:
    """Gives how often it was done."""
    work = backgrounds(b)[name]
    end = threading.Event()
    count = 0
    broken: list[BaseException] = []

    def background() -> None:
        nonlocal count
        try:
            b.cuda.do("cuCtxSetCurrent", b.context)
            while not end.is_set():
                work()
                count += 1
        except BaseException as error:
            broken.append(error)

    thread = threading.Thread(target=background, daemon=True)
    thread.start()
    try:
        yield lambda: count
    finally:
        end.set()
        thread.join(10)
    if broken:
        raise AssertionError(f"the background broke after {count} times: {broken[0]}")


@contextmanager
def _process(_b: Bench, name: str) -> Iterator[Callable[[], int]]:
    """Gives how often it was done."""
    command = [sys.executable, "-P", "-m", __name__, name]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        if (said := process.stdout.readline().strip()) != "ready":
            raise AssertionError(said or "its process ended early")

        def done() -> int:
            return int(process.communicate("stop\n", timeout=10)[0])

        yield done
    finally:
        process.kill()


def serve(name: str) -> None:
    """The other process: until it is told to stop."""
    work = backgrounds(Bench(Cuda(ctypes.CDLL("libcuda.so.1"))))[name]
    stop = threading.Event()
    threading.Thread(target=lambda: (sys.stdin.readline(), stop.set()), daemon=True).start()
    work()
    print("ready", flush=True)
    count = 1
    while not stop.is_set():
        work()
        count += 1
    print(count, flush=True)


def _launched(b: Bench, executable: ctypes.c_void_p, stream: int, seconds: float) -> dict[str, Any]:
    launches: list[float] = []
    steps: list[float] = []
    until = perf_counter() + seconds
    while perf_counter() < until:
        start = perf_counter()
        b.cuda.do("cuGraphLaunch", executable, stream)
        launched = perf_counter()
        b.cuda.do("cuStreamSynchronize", stream)
        launches.append(launched - start)
        steps.append(perf_counter() - start)
    return {"launch": summary(launches), "launch_and_end": summary(steps)}


if __name__ == "__main__":
    serve(sys.argv[1])
