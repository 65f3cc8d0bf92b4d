"""A capture in which its own thread unmaps, and a graph's nodes when their pages change."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from conformance_bench import Bench
from cuda_calls import GLOBAL, RELAXED, SUCCESS

from benchmarks.gpu.probe_what import named

_OLD, _NEW = 3, 5  # what the bytes of a page are, and of the page that is mapped in its place


def _page_of(b: Bench, byte: int) -> tuple[int, int]:
    """A page's address and handle."""
    base, handle = b.reserve(1), b.create()
    b.map(base, handle)
    b.allow(base)
    b.cuda.do("cuMemsetD8", base, byte, b.page)
    b.cuda.do("cuCtxSynchronize")
    return base, handle


def _unmapped(b: Bench, base: int) -> None:
    b.cuda.do("cuMemUnmap", base, b.page)
    b.done("cuMemUnmap", base, b.page)


def _first_byte(b: Bench, address: int) -> int:
    byte = ctypes.create_string_buffer(1)
    b.cuda.do("cuMemcpyDtoH", byte, address, 1)
    return byte.raw[0]


def _unmap_in_capture(relaxed: bool, b: Bench) -> Iterator[tuple[str, Any]]:
    """The page of a captured memset is unmapped by the capturing thread, before the capture ends."""
    (base, handle), stream, graph = _page_of(b, _OLD), b.stream(), ctypes.c_void_p()
    b.cuda.do("cuStreamBeginCapture", stream, GLOBAL)
    b.cuda.do("cuMemsetD8Async", base, _NEW, b.page, stream)
    mode = ctypes.c_int(RELAXED)
    if relaxed:
        b.cuda.do("cuThreadExchangeStreamCaptureMode", ctypes.byref(mode))
    result = b.cuda.cuMemUnmap(base, b.page)
    if relaxed:
        b.cuda.do("cuThreadExchangeStreamCaptureMode", ctypes.byref(mode))
    yield "unmap", named(b.cuda, result)
    yield "end of the capture", named(b.cuda, b.cuda.cuStreamEndCapture(stream, ctypes.byref(graph)))
    if result == SUCCESS:
        b.done("cuMemUnmap", base, b.page)
        b.map(base, handle)
        b.allow(base)
    yield "the page is still there", _first_byte(b, base) == _OLD
    if graph.value:
        yield from _launched(b, graph, stream)
        yield "the memset was run", _first_byte(b, base) == _NEW


def _launched(b: Bench, graph: ctypes.c_void_p, stream: int) -> Iterator[tuple[str, Any]]:
    executable = ctypes.c_void_p()
    result = b.cuda.cuGraphInstantiateWithFlags(ctypes.byref(executable), graph, 0)
    yield "instantiate", named(b.cuda, result)
    if result == SUCCESS:
        yield "launch", named(b.cuda, b.cuda.cuGraphLaunch(executable, stream))
        yield "end of its work", named(b.cuda, b.cuda.cuStreamSynchronize(stream))


# What is captured, of a page and another address.
NODES: dict[str, Callable[[Bench, int, int, int], None]] = {
    "memcpy from a page": lambda b, page, other, s: b.cuda.do("cuMemcpyAsync", other, page, b.page, s),
    "memcpy to a page": lambda b, page, other, s: b.cuda.do("cuMemcpyAsync", page, other, b.page, s),
    "memset of a page": lambda b, page, other, s: b.cuda.do("cuMemsetD8Async", page, 7, b.page, s),
}


def _remapped(
    node: Callable[[Bench, int, int, int], None], when: str, again: bool, b: Bench
) -> Iterator[tuple[str, Any]]:
    """The page is unmapped before the graph is instantiated, or before it is launched, and another one is
    mapped in its place at once, or not at all."""
    (page, _), (other, _) = _page_of(b, _OLD), _page_of(b, 1)
    stream, graph, executable = b.stream(), ctypes.c_void_p(), ctypes.c_void_p()
    b.cuda.do("cuStreamBeginCapture", stream, GLOBAL)
    node(b, page, other, stream)
    b.cuda.do("cuStreamEndCapture", stream, ctypes.byref(graph))

    def change() -> None:
        _unmapped(b, page)
        if again:
            b.map(page, b.create())
            b.allow(page)
            b.cuda.do("cuMemsetD8", page, _NEW, b.page)
            b.cuda.do("cuCtxSynchronize")

    if when == "instantiated":
        change()
    result = b.cuda.cuGraphInstantiateWithFlags(ctypes.byref(executable), graph, 0)
    yield "instantiate", named(b.cuda, result)
    if result != SUCCESS:
        return
    if when == "launched":
        b.cuda.do("cuGraphLaunch", executable, stream)
        b.cuda.do("cuStreamSynchronize", stream)
        change()
    yield "launch", named(b.cuda, b.cuda.cuGraphLaunch(executable, stream))
    result = b.cuda.cuStreamSynchronize(stream)
    yield "end of its work", named(b.cuda, result)
    if again and result == SUCCESS:
        yield "bytes of the page and of the other", [_first_byte(b, page), _first_byte(b, other)]


QUESTIONS = {
    "9 unmap in one's own global capture": partial(_unmap_in_capture, False),
    "9 unmap in one's own global capture, RELAXED": partial(_unmap_in_capture, True),
    **{
        f"9 {name}, {'remapped' if again else 'unmapped'} before it is {when}": partial(
            _remapped, node, when, again
        )
        for again in (True, False)
        for when in ("instantiated", "launched")
        for name, node in NODES.items()
    },
}
