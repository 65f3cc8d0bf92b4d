"""Blocks over a pool's lease: which pages the blocks of a Layout use, and who uses them."""

from __future__ import annotations

from collections.abc import Iterable
from threading import Lock
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vmm._core import Lease
    from vmm.integrations.vllm.layout import Layout


class LeaseBlocks:
    """Keeps and drops blocks, counting the users of each page. Safe from any thread."""

    def __init__(self, lease: Lease, layout: Layout) -> None:
        self._lease, self._layout = lease, layout
        self._users: dict[int, int] = {}
        self._kept: set[int] = set()
        self._lock = Lock()

    def _pages(self, block: int) -> set[int]:
        page, stride = self._lease.page_bytes, self._layout.stride
        pages: set[int] = set()
        for start in self._layout.starts:
            first = start + block * stride
            pages.update(range(first // page, -(-(first + stride) // page)))
        return pages

    def keep(self, ids: Iterable[int]) -> None:
        """Maps what the blocks need: all or nothing. Raises OutOfPages."""
        with self._lock:
            new = [block for block in ids if block not in self._kept]
            fresh: dict[int, int] = {}
            for block in new:
                for page in self._pages(block):
                    fresh[page] = fresh.get(page, 0) + 1
            self._lease.map(self._ranges(page for page in fresh if page not in self._users))
            for page, users in fresh.items():
                self._users[page] = self._users.get(page, 0) + users
            self._kept.update(new)

    def drop(self, ids: Iterable[int]) -> None:
        """Ends the need of the blocks and unmaps what nobody uses any more."""
        with self._lock:
            gone = []
            for block in ids:
                if block not in self._kept:
                    continue
                self._kept.remove(block)
                for page in self._pages(block):
                    self._users[page] -= 1
                    if self._users[page] == 0:
                        del self._users[page]
                        gone.append(page)
            self._lease.retire(self._ranges(gone))

    @staticmethod
    def _ranges(pages: Iterable[int]) -> list[tuple[int, int]]:
        """(first, count) of each run of pages."""
        ranges: list[tuple[int, int]] = []
        for page in sorted(pages):
            if ranges and sum(ranges[-1]) == page:
                ranges[-1] = (ranges[-1][0], ranges[-1][1] + 1)
            else:
                ranges.append((page, 1))
        return ranges
