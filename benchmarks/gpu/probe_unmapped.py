"""What memsets and copies answer where nothing is mapped, at once and when they are waited for."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from functools import partial

from conformance_bench import Bench

from benchmarks.gpu.probe_what import named


def _unmapped(b: Bench) -> int:
    return b.reserve(2)


def _not_reserved(b: Bench) -> int:
    base = b.reserve(2)
    b.cuda.do("cuMemAddressFree", base, 2 * b.page)
    b.done("cuMemAddressFree", base, 2 * b.page)
    return base


def _not_opened(b: Bench) -> int:
    base = b.reserve(2)
    b.map(base, b.create(2), 2)
    return base


def _second_half_unmapped(b: Bench) -> int:
    base = b.reserve(2)
    b.map(base, b.create())
    b.allow(base)
    return base


def _second_half_not_opened(b: Bench) -> int:
    base = _second_half_unmapped(b)
    b.map(base + b.page, b.create())
    return base


ADDRESSES: dict[str, Callable[[Bench], int]] = {
    "of a reservation, unmapped": _unmapped,
    "not reserved": _not_reserved,
    "mapped, not opened": _not_opened,
    "mapped, then unmapped": _second_half_unmapped,
    "opened, then not opened": _second_half_not_opened,
}

# Of both pages; the stream is the second argument.
CALLS: dict[str, Callable[[Bench, int, int, int], int]] = {
    "cuMemsetD8": lambda b, at, stream, other: b.cuda.cuMemsetD8(at, 1, 2 * b.page),
    "cuMemsetD8Async": lambda b, at, stream, other: b.cuda.cuMemsetD8Async(at, 1, 2 * b.page, stream),
    "cuMemcpyDtoH": lambda b, at, stream, other: b.cuda.cuMemcpyDtoH(
        ctypes.create_string_buffer(2 * b.page), at, 2 * b.page
    ),
    "cuMemcpyAsync from it": lambda b, at, stream, other: b.cuda.cuMemcpyAsync(other, at, 2 * b.page, stream),
    "cuMemcpyAsync to it": lambda b, at, stream, other: b.cuda.cuMemcpyAsync(at, other, 2 * b.page, stream),
}


def _said(call: Callable[[Bench, int, int, int], int], addresses: Callable[[Bench], int], b: Bench) -> str:
    """The call's result and that of waiting for the stream."""
    other = b.reserve(2)
    b.map(other, b.create(2), 2)
    b.allow(other, 2)
    stream, at = b.stream(), addresses(b)
    result = call(b, at, stream, other)
    waited = b.cuda.cuStreamSynchronize(stream)
    return f"{named(b.cuda, result)}; then {named(b.cuda, waited)}"


QUESTIONS = {
    f"8 {name}, {which}": partial(_said, call, addresses)
    for which, addresses in ADDRESSES.items()
    for name, call in CALLS.items()
}
