"""What a conformance scenario works with."""

import ctypes
import dataclasses
from collections.abc import Callable

from cuda_calls import NON_BLOCKING, Cuda, access, properties

SCENARIOS: dict[str, Callable[["Bench"], None]] = {}
NO_DEVICE_THERE = 63


def scenario(function):
    SCENARIOS[function.__name__] = function
    return function


@dataclasses.dataclass
class Step:
    call: str
    expected: tuple[int, ...]
    actual: int

    @property
    def ok(self) -> bool:
        return self.actual in self.expected


class Bench:
    """Device 0 with its primary context current, and what a scenario made, undone at its end."""

    def __init__(self, cuda: Cuda) -> None:
        self.cuda = cuda
        self.steps: list[Step] = []
        self._undo: list[tuple] = []
        cuda.do("cuInit", 0)
        self.context = cuda.get_number("cuDevicePrimaryCtxRetain", 0)
        cuda.do("cuCtxSetCurrent", self.context)
        self.page = cuda.get_number("cuMemGetAllocationGranularity", ctypes.byref(properties()), 0)

    def expect(self, expected: int | tuple[int, ...], name: str, *arguments) -> int:
        actual = getattr(self.cuda, name)(*arguments)
        self.steps.append(Step(name, expected if isinstance(expected, tuple) else (expected,), actual))
        return actual

    def note(self, what: str, *, holds: bool) -> None:
        """Something that is not a result: an answer's value."""
        self.steps.append(Step(what, (1,), int(holds)))

    def reserve(self, pages: int = 4, alignment: int | None = None) -> int:
        size = pages * self.page
        base = self.cuda.get_number(
            "cuMemAddressReserve", size, self.page if alignment is None else alignment, 0, 0
        )
        self._undo.append(("cuMemAddressFree", base, size))
        return base

    def create(self, pages: int = 1, **what) -> int:
        handle = self.cuda.get_number("cuMemCreate", pages * self.page, ctypes.byref(properties(**what)), 0)
        self._undo.append(("cuMemRelease", handle))
        return handle

    def map(self, address: int, handle: int, pages: int = 1) -> None:
        self.cuda.do("cuMemMap", address, pages * self.page, 0, handle, 0)
        self._undo.append(("cuMemUnmap", address, pages * self.page))

    def allow(self, address: int, pages: int = 1) -> None:
        self.cuda.do("cuMemSetAccess", address, pages * self.page, ctypes.byref(access()), 1)

    def done(self, name: str, *arguments) -> None:
        """The scenario undid this itself."""
        self._undo.remove((name, *arguments))

    def stream(self, flags: int = NON_BLOCKING) -> int:
        stream = self.cuda.get_number("cuStreamCreate", flags)
        self._undo.append(("cuStreamDestroy", stream))
        return stream

    def event(self, flags: int = 2) -> int:
        event = self.cuda.get_number("cuEventCreate", flags)
        self._undo.append(("cuEventDestroy", event))
        return event

    def close(self) -> None:
        self.cuda.do("cuCtxSetCurrent", self.context)
        self.cuda.do("cuCtxSynchronize")
        for name, *arguments in reversed(self._undo):
            self.cuda.do(name, *arguments)
        self.cuda.do("cuDevicePrimaryCtxRelease", 0)
        self.cuda.do("cuCtxSetCurrent", None)


def out(kind=ctypes.c_uint64):
    return ctypes.byref(kind())


def page_of(bench, base, at, size=None):
    return (base + at * bench.page, size or bench.page)
