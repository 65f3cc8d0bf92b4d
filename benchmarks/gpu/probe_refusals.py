"""Probe 4: what the real driver says to what the stand-in refuses or believes undefined."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from functools import partial

from conformance_bench import Bench
from cuda_calls import Access, Location, access, properties

from benchmarks.gpu.probe_what import named


def _pair(b: Bench, accessible: bool = True) -> int:
    """A handle of two pages, mapped at the second page of a reservation of four."""
    base = b.reserve(4)
    b.map(base + b.page, b.create(2), 2)
    if accessible:
        b.allow(base + b.page, 2)
    return base


def _hole(b: Bench) -> int:
    """Pages at 0, 1 and 3 of four."""
    base = b.reserve(4)
    for at in (0, 1, 3):
        b.map(base + at * b.page, b.create())
        b.allow(base + at * b.page)
    return base


def _set_access(b: Bench, address: int, pages: int, flags: int = 3) -> int:
    return b.cuda.cuMemSetAccess(address, pages * b.page, ctypes.byref(access(flags=flags)), 1)


def _copy_from(b: Bench, address: int) -> int:
    return b.cuda.cuMemcpyDtoH(ctypes.create_string_buffer(1), address, 1)


def _partial_unmap(b: Bench, first: bool) -> list[int]:
    """The half, then a read of each half, then the whole."""
    start = _pair(b) + b.page
    half = b.cuda.cuMemUnmap(start if first else start + b.page, b.page)
    reads = [_copy_from(b, start), _copy_from(b, start + b.page)]
    return [half, *reads, b.cuda.cuMemUnmap(start, 2 * b.page)]


def _partial_access(b: Bench) -> list[int]:
    start = _pair(b, accessible=False) + b.page
    return [_set_access(b, start, 1), _copy_from(b, start), _copy_from(b, start + b.page)]


def _over_a_boundary(b: Bench) -> int | bool:
    """Two reservations side by side and a mapping over both; False if the driver gives no such two."""
    first = b.reserve(1)
    second = ctypes.c_uint64()
    result = b.cuda.cuMemAddressReserve(ctypes.byref(second), b.page, b.page, first + b.page, 0)
    if result or second.value != first + b.page:
        return False
    return b.cuda.cuMemMap(first, 2 * b.page, 0, b.create(2), 0)


def _free_while_mapped(b: Bench) -> list[int]:
    """The range, then a read of what is mapped in it."""
    base = _pair(b)
    return [b.cuda.cuMemAddressFree(base, 4 * b.page), _copy_from(b, base + b.page)]


def _release_while_mapped(b: Bench) -> list[int | bool]:
    """A release, a read, an unmapping, and whether the memory came back then."""
    free, total = ctypes.c_size_t(), ctypes.c_size_t()
    base, handle = b.reserve(1), ctypes.c_uint64()
    b.cuda.do("cuMemCreate", ctypes.byref(handle), b.page, ctypes.byref(properties()), 0)
    b.cuda.do("cuMemMap", base, b.page, 0, handle.value, 0)
    b.allow(base)
    results = [b.cuda.cuMemRelease(handle.value), _copy_from(b, base)]
    b.cuda.do("cuMemGetInfo", ctypes.byref(free), ctypes.byref(total))
    before = free.value
    results.append(b.cuda.cuMemUnmap(base, b.page))
    b.cuda.do("cuMemGetInfo", ctypes.byref(free), ctypes.byref(total))
    return [*results, free.value > before]


def _map(b: Bench, at: int, pages: int, handle_pages: int, offset_pages: int = 0) -> int:
    base = b.reserve(4)
    handle = b.create(handle_pages)
    return b.cuda.cuMemMap(base + at, pages * b.page, offset_pages * b.page, handle, 0)


def _map_over(b: Bench, address: int) -> int:
    return b.cuda.cuMemMap(address, b.page, 0, b.create(), 0)


def _unknown_node(b: Bench) -> int:
    what = properties(location=Location(3, 63))
    return b.cuda.cuMemCreate(ctypes.byref(ctypes.c_uint64()), b.page, ctypes.byref(what), 0)


def _host_access_to_device_page(b: Bench) -> int:
    base = _pair(b)
    host = Access(Location(3, 0), 3)
    return b.cuda.cuMemSetAccess(base + b.page, 2 * b.page, ctypes.byref(host), 1)


# What is asked, in the words of the answer's name: a CUresult or a truth, or several in turn.
Answer = int | bool
REFUSALS: dict[str, Callable[[Bench], Answer | list]] = {
    "unmap over a hole": lambda b: b.cuda.cuMemUnmap(_hole(b), 4 * b.page),
    "unmap a hole": lambda b: b.cuda.cuMemUnmap(_hole(b) + 2 * b.page, b.page),
    "unmap what was never mapped": lambda b: b.cuda.cuMemUnmap(b.reserve(2), 2 * b.page),
    "unmap neighbours in one call": lambda b: b.cuda.cuMemUnmap(_hole(b), 2 * b.page),
    "open over a hole": lambda b: _set_access(b, _hole(b), 4),
    "open twice": lambda b: _set_access(b, _hole(b), 2),
    "open for reading only": lambda b: _set_access(b, _hole(b), 2, flags=1),
    "close to all": lambda b: _set_access(b, _hole(b), 2, flags=0),
    "open a device page to the host": _host_access_to_device_page,
    "map less than the handle": lambda b: _map(b, 0, 1, 2),
    "map more than the handle": lambda b: _map(b, 0, 2, 1),
    "map the handle's second page": lambda b: _map(b, 0, 1, 2, offset_pages=1),
    "map at half a page": lambda b: _map(b, b.page // 2, 1, 1),
    "map past the end": lambda b: _map(b, 3 * b.page, 2, 2),
    "map over a page": lambda b: _map_over(b, _hole(b)),
    "map over half of a mapping": lambda b: _map_over(b, _pair(b) + b.page),
    "map over two reservations": _over_a_boundary,
    "release a mapped handle; read; unmap; does the memory come back": _release_while_mapped,
    "unmap the first half of a mapping; read both; unmap all": lambda b: _partial_unmap(b, True),
    "unmap the second half; read both; unmap all": lambda b: _partial_unmap(b, False),
    "open half of a mapping; read both halves": _partial_access,
    "free a range with a page in it; read the page": _free_while_mapped,
    "read a page that nobody opened": lambda b: _copy_from(b, _pair(b, accessible=False) + b.page),
    "read an unmapped address": lambda b: _copy_from(b, b.reserve(1)),
    "host memory of a node that is not there": _unknown_node,
}


def _asked(ask: Callable[[Bench], Answer | list], b: Bench) -> str:
    answer = ask(b)
    return ", ".join(_text(b, each) for each in (answer if isinstance(answer, list) else [answer]))


def _text(b: Bench, answer: Answer) -> str:
    return ("yes" if answer else "no") if isinstance(answer, bool) else named(b.cuda, answer)


QUESTIONS = {f"4 {what}": partial(_asked, ask) for what, ask in REFUSALS.items()}
