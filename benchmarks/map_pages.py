"""Pages of a raw driver for ``vmm bench map``: every call timed, and whatever was done undone."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from time import perf_counter
from typing import Any

from vmm.errors import Error

CALLS = ("create", "map", "set_access", "unmap", "release")


def insist(undo: Callable[..., object], *arguments: object) -> None:
    """Tries twice, so that one failure leaves nothing behind. Raises the first one's error."""
    try:
        undo(*arguments)
    except Error:
        undo(*arguments)
        raise


class Pages:
    """``count`` pages of ``page_bytes`` and the addresses they are mapped at; a ``with`` undoes all of it.

    ``driver`` has the methods of vmm._core.Driver; the pages' places, in bytes, begin at ``place``. In
    ``seconds`` is one number for each call that was made: as a caller in Python sees it, with the conversion
    of its arguments. Whatever the driver raises is raised.
    """

    def __init__(self, driver: Any, page_bytes: int, count: int = 1, *, place: int = 0) -> None:
        self._driver, self._page_bytes, self._count, self._place = driver, page_bytes, count, place
        self._entries: list[tuple[int, int, int]] = []
        self._undo: list[tuple[Any, ...]] = []
        self.seconds: dict[str, list[float]] = {call: [] for call in CALLS}

    def __enter__(self) -> Pages:
        size = self._count * self._page_bytes
        self._base = self._driver.reserve(size, self._page_bytes)
        self._undo.append(("free_reservation", self._base, size))
        return self

    def __exit__(self, *_: object) -> None:
        with ExitStack() as stack:
            for name, *arguments in self._undo:
                stack.callback(insist, getattr(self._driver, name), *arguments)

    def _timed(self, name: str, *arguments: object) -> Any:
        call = getattr(self._driver, name)
        start = perf_counter()
        result = call(*arguments)
        self.seconds[name].append(perf_counter() - start)
        return result

    def create(self) -> None:
        """One call a page, at neighbouring places and for neighbouring addresses."""
        for at in range(0, self._count * self._page_bytes, self._page_bytes):
            page = self._timed("create", self._page_bytes, self._place + at)
            self._undo.append(("release", page))
            self._entries.append((self._base + at, page, self._page_bytes))

    def map(self) -> None:
        """Maps all in one call, and makes them accessible in another."""
        self._timed("map", self._entries)
        self._undo.append(("unmap", self._entries))
        self._timed("set_access", self._entries)

    def unmap(self) -> None:
        self._timed("unmap", self._entries)
        self._undo.pop()

    def release(self) -> None:
        """One call a page."""
        while self._entries:
            self._timed("release", self._entries[-1][1])
            self._undo.pop()
            self._entries.pop()

    def live(self) -> None:
        """One whole life: created, mapped, unmapped, released."""
        self.create()
        self.map()
        self.unmap()
        self.release()

    def grow(self) -> float:
        """Seconds from pages that exist to mapped and accessible ones. They are unmapped again, untimed."""
        self.map()
        self.unmap()
        return self.seconds["map"][-1] + self.seconds["set_access"][-1]
