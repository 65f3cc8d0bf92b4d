"""Scenarios: what a stream capture forbids."""

import ctypes
import threading
from collections.abc import Callable

from conformance_bench import SCENARIOS, Bench, out, scenario
from cuda_calls import (
    CAPTURE_IMPLICIT,
    CAPTURE_INVALIDATED,
    CAPTURE_UNJOINED,
    CAPTURE_UNSUPPORTED,
    CAPTURE_WRONG_THREAD,
    CAPTURED_EVENT,
    GLOBAL,
    ILLEGAL_STATE,
    NON_BLOCKING,
    RELAXED,
    SUCCESS,
    access,
    properties,
)


class Capturing:
    """A capture of a stream of its own."""

    def __init__(self, b: Bench, mode: int = GLOBAL, flags: int = NON_BLOCKING) -> None:
        self.b, self.stream = b, b.stream(flags)
        b.cuda.do("cuStreamBeginCapture", self.stream, mode)

    def end(self, expected: int) -> None:
        graph = ctypes.c_void_p()
        self.b.expect(expected, "cuStreamEndCapture", self.stream, ctypes.byref(graph))
        if graph.value:
            self.b.cuda.do("cuGraphDestroy", graph)


def in_thread(body) -> None:
    thread = threading.Thread(target=body)
    thread.start()
    thread.join()


def _breaks(name: str, arguments: Callable[[Bench], tuple]) -> None:
    def broken(b: Bench) -> None:
        given = arguments(b)
        capture = Capturing(b)
        b.expect(CAPTURE_UNSUPPORTED, name, *given)
        capture.end(CAPTURE_INVALIDATED)

    SCENARIOS[f"capture_is_broken_by_{name}"] = broken


def _map_arguments(b: Bench) -> tuple:
    return b.reserve(1), b.page, 0, b.create(), 0


def _mapped(b: Bench) -> tuple:
    base = b.reserve(1)
    b.map(base, b.create())
    return base, b.page


_breaks("cuMemCreate", lambda b: (out(), b.page, ctypes.byref(properties()), 0))
_breaks("cuMemAddressReserve", lambda b: (out(), b.page, b.page, 0, 0))
_breaks("cuMemMap", _map_arguments)
_breaks("cuMemSetAccess", lambda b: (*_mapped(b), ctypes.byref(access()), 1))
_breaks("cuMemUnmap", _mapped)
_breaks("cuMemAlloc", lambda b: (out(), 4096))
_breaks("cuEventQuery", lambda b: (b.event(),))
_breaks("cuStreamSynchronize", lambda b: (b.stream(),))


@scenario
def capture_is_broken_from_another_thread(b):
    event = b.event()
    capture = Capturing(b)
    in_thread(lambda: b.expect(CAPTURE_UNSUPPORTED, "cuEventQuery", event))
    capture.end(CAPTURE_INVALIDATED)


@scenario
def capture_of_thread_local_mode_ignores_other_threads(b):
    event = b.event()
    capture = Capturing(b, mode=1)
    in_thread(lambda: b.expect(SUCCESS, "cuEventQuery", event))
    capture.end(SUCCESS)


@scenario
def relaxed_threads_break_no_capture(b):
    base, handle = b.reserve(1), b.create()
    capture = Capturing(b)

    def relaxed():
        mode = ctypes.c_int(RELAXED)
        b.expect(SUCCESS, "cuThreadExchangeStreamCaptureMode", ctypes.byref(mode))
        b.note("it was GLOBAL", holds=mode.value == GLOBAL)
        b.expect(SUCCESS, "cuMemMap", base, b.page, 0, handle, 0)
        b.expect(SUCCESS, "cuMemSetAccess", base, b.page, ctypes.byref(access()), 1)
        b.expect(SUCCESS, "cuMemUnmap", base, b.page)

    in_thread(relaxed)
    capture.end(SUCCESS)


@scenario
def capture_status(b):
    capture = Capturing(b)
    status = ctypes.c_int(9)
    b.expect(SUCCESS, "cuStreamIsCapturing", capture.stream, ctypes.byref(status))
    b.note("active", holds=status.value == 1)
    b.expect(CAPTURE_UNSUPPORTED, "cuStreamSynchronize", capture.stream)
    b.expect(SUCCESS, "cuStreamIsCapturing", capture.stream, ctypes.byref(status))
    b.note("invalidated", holds=status.value == 2)
    capture.end(CAPTURE_INVALIDATED)
    b.expect(SUCCESS, "cuStreamIsCapturing", capture.stream, ctypes.byref(status))
    b.note("none", holds=status.value == 0)


@scenario
def an_event_of_a_context_breaks_its_captures(b):
    event = b.event()
    capture = Capturing(b, mode=RELAXED)
    b.expect(CAPTURE_UNSUPPORTED, "cuCtxRecordEvent", b.context, event)
    capture.end(CAPTURE_INVALIDATED)
    b.expect(SUCCESS, "cuCtxRecordEvent", b.context, event)


@scenario
def a_captured_event_cannot_be_asked(b):
    event = b.event()
    capture = Capturing(b, mode=RELAXED)
    b.expect(SUCCESS, "cuEventRecord", event, capture.stream)
    mode = ctypes.c_int(RELAXED)
    b.cuda.do("cuThreadExchangeStreamCaptureMode", ctypes.byref(mode))
    b.expect(CAPTURED_EVENT, "cuEventQuery", event)
    b.cuda.do("cuThreadExchangeStreamCaptureMode", ctypes.byref(mode))
    capture.end(CAPTURE_INVALIDATED)


@scenario
def capture_forks_and_joins(b):
    fork, join, other = b.event(), b.event(), b.stream()
    capture = Capturing(b)
    b.expect(SUCCESS, "cuEventRecord", fork, capture.stream)
    b.expect(SUCCESS, "cuStreamWaitEvent", other, fork, 0)
    b.expect(SUCCESS, "cuEventRecord", join, other)
    b.expect(SUCCESS, "cuStreamWaitEvent", capture.stream, join, 0)
    capture.end(SUCCESS)


@scenario
def capture_must_be_joined(b):
    fork, other = b.event(), b.stream()
    base = b.reserve(1)
    b.map(base, b.create())
    b.allow(base)
    capture = Capturing(b)
    b.expect(SUCCESS, "cuEventRecord", fork, capture.stream)
    b.expect(SUCCESS, "cuStreamWaitEvent", other, fork, 0)
    b.expect(SUCCESS, "cuMemsetD8Async", base, 1, b.page, other)
    capture.end(CAPTURE_UNJOINED)


@scenario
def capture_ends_where_it_began(b):
    capture = Capturing(b)
    in_thread(
        lambda: b.expect(CAPTURE_WRONG_THREAD, "cuStreamEndCapture", capture.stream, out(ctypes.c_void_p))
    )
    capture.end(SUCCESS)
    b.expect(ILLEGAL_STATE, "cuStreamEndCapture", capture.stream, out(ctypes.c_void_p))


@scenario
def the_legacy_stream_and_captures(b):
    b.expect(CAPTURE_UNSUPPORTED, "cuStreamBeginCapture", None, RELAXED)
    event = b.event()
    capture = Capturing(b, flags=0)  # one that the legacy stream waits for
    b.expect(CAPTURE_IMPLICIT, "cuStreamIsCapturing", None, out(ctypes.c_int))
    b.expect(CAPTURE_IMPLICIT, "cuEventRecord", event, None)
    capture.end(CAPTURE_INVALIDATED)


@scenario
def captured_work_runs_with_the_graph(b):
    base = b.reserve(1)
    b.map(base, b.create())
    b.allow(base)
    b.cuda.do("cuMemsetD8", base, 1, b.page)
    b.cuda.do("cuCtxSynchronize")
    stream, graph, executable = b.stream(), ctypes.c_void_p(), ctypes.c_void_p()
    b.cuda.do("cuStreamBeginCapture", stream, GLOBAL)
    b.expect(SUCCESS, "cuMemsetD8Async", base, 2, b.page, stream)
    b.expect(SUCCESS, "cuStreamEndCapture", stream, ctypes.byref(graph))
    byte = ctypes.create_string_buffer(1)
    b.cuda.do("cuMemcpyDtoH", byte, base, 1)
    b.note("not run when captured", holds=byte.raw == b"\1")
    b.cuda.do("cuGraphInstantiateWithFlags", ctypes.byref(executable), graph, 0)
    b.expect(SUCCESS, "cuGraphLaunch", executable, stream)
    b.cuda.do("cuStreamSynchronize", stream)
    b.cuda.do("cuMemcpyDtoH", byte, base, 1)
    b.note("run when launched", holds=byte.raw == b"\2")
    b.cuda.do("cuGraphExecDestroy", executable)
    b.cuda.do("cuGraphDestroy", graph)
