"""Probe 5: which calls a stream capture forbids, from whom, and what becomes of it."""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from conformance_bench import Bench
from cuda_calls import GLOBAL, RELAXED, THREAD_LOCAL, access, properties

from benchmarks.gpu.probe_what import named

_MODES = {"GLOBAL": GLOBAL, "THREAD_LOCAL": THREAD_LOCAL, "RELAXED": RELAXED}


@dataclass
class Props:
    """What the calls need, made anew for each capture."""

    b: Bench
    base: int  # two pages, the first mapped and accessible, nothing in the second
    spare: int  # a handle that is mapped nowhere
    stream: int
    event: int  # recorded before, and over

    @classmethod
    def of(cls, b: Bench) -> Props:
        base = b.reserve(2)
        b.map(base, b.create())
        b.allow(base)
        stream, event = b.stream(), b.event()
        b.cuda.do("cuEventRecord", event, stream)
        b.cuda.do("cuStreamSynchronize", stream)
        return cls(b, base, b.create(), stream, event)


def _answer(bits: type = ctypes.c_uint64) -> Any:
    return ctypes.byref(bits())


CALLS: dict[str, Callable[[Props], int]] = {
    "cuMemCreate": lambda p: p.b.cuda.cuMemCreate(_answer(), p.b.page, ctypes.byref(properties()), 0),
    "cuMemAddressReserve": lambda p: p.b.cuda.cuMemAddressReserve(_answer(), p.b.page, 0, 0, 0),
    "cuMemMap": lambda p: p.b.cuda.cuMemMap(p.base + p.b.page, p.b.page, 0, p.spare, 0),
    "cuMemSetAccess": lambda p: p.b.cuda.cuMemSetAccess(p.base, p.b.page, ctypes.byref(access()), 1),
    "cuMemUnmap": lambda p: p.b.cuda.cuMemUnmap(p.base, p.b.page),
    "cuMemRelease": lambda p: p.b.cuda.cuMemRelease(p.spare),
    "cuMemGetInfo": lambda p: p.b.cuda.cuMemGetInfo(_answer(), _answer()),
    "cuMemAlloc": lambda p: p.b.cuda.cuMemAlloc(_answer(), 4096),
    "cuEventCreate": lambda p: p.b.cuda.cuEventCreate(_answer(), 2),
    "cuEventRecord elsewhere": lambda p: p.b.cuda.cuEventRecord(p.event, p.stream),
    "cuEventQuery": lambda p: p.b.cuda.cuEventQuery(p.event),
    "cuEventSynchronize": lambda p: p.b.cuda.cuEventSynchronize(p.event),
    "cuStreamQuery elsewhere": lambda p: p.b.cuda.cuStreamQuery(p.stream),
    "cuStreamSynchronize elsewhere": lambda p: p.b.cuda.cuStreamSynchronize(p.stream),
    "cuMemsetD8Async elsewhere": lambda p: p.b.cuda.cuMemsetD8Async(p.base, 1, 16, p.stream),
    "cuStreamCreate": lambda p: p.b.cuda.cuStreamCreate(_answer(), 1),
}


def _ways(call: Callable[[Props], int], b: Bench) -> str | dict[str, str]:
    """The call's result, and that of ending the capture, by the capture's mode, the calling thread, and the
    thread's own mode; only one where all are the same."""
    found: dict[str, str] = {}
    for mode, number in _MODES.items():
        for elsewhere in (False, True):
            for relaxed in (False, True):
                who = f"{mode}, {'another' if elsewhere else 'own'} thread{', RELAXED' * relaxed}"
                found[who] = _during(Props.of(b), number, call, elsewhere, relaxed)
    same = set(found.values())
    return same.pop() if len(same) == 1 else found


QUESTIONS = {f"5 {name}": partial(_ways, call) for name, call in CALLS.items()}


def _during(p: Props, mode: int, call: Callable[[Props], int], elsewhere: bool, relaxed: bool) -> str:
    cuda, captured, graph = p.b.cuda, p.b.stream(), ctypes.c_void_p()
    cuda.do("cuStreamBeginCapture", captured, mode)
    results = []

    def attempt() -> None:
        if elsewhere:
            cuda.do("cuCtxSetCurrent", p.b.context)
        own = ctypes.c_int(RELAXED)
        if relaxed:
            cuda.do("cuThreadExchangeStreamCaptureMode", ctypes.byref(own))
        results.append(call(p))
        if relaxed:
            cuda.do("cuThreadExchangeStreamCaptureMode", ctypes.byref(own))

    if elsewhere:
        thread = threading.Thread(target=attempt)
        thread.start()
        thread.join()
    else:
        attempt()
    ended = cuda.cuStreamEndCapture(captured, ctypes.byref(graph))
    if graph.value:
        cuda.do("cuGraphDestroy", graph)
    if not results:
        return f"the thread raised; capture {named(cuda, ended)}"
    return f"{named(cuda, results[0])}; capture {named(cuda, ended)}"
