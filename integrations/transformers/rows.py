"""Rows of a batch that share pages: which bytes of K and V are shared, and which are copied."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from vmm._core import Lease
from vmm.dlpack import tensor_over

_INTEGERS = {2: torch.int16, 4: torch.int32, 8: torch.int64}


@dataclass(frozen=True)
class Place:
    """Where a layer's K, or its V, lies: ``extents`` of ``lease``, shared out evenly among ``rows``, in each
    of which a token has a record of ``record_bytes``."""

    lease: Lease
    rows: int
    extents: int
    record_bytes: int

    @property
    def part(self) -> tuple[Lease, int, int, int]:
        """As a growth is told of it."""
        return self.lease, 0, self.extents, self.record_bytes

    def is_like(self, other: Place) -> bool:
        """Whether a row of the other has the same layout, so that pages can be shared."""
        return (
            self.extents // self.rows == other.extents // other.rows
            and self.record_bytes == other.record_bytes
        )

    def rest(self, dtype: torch.dtype, first: int, length: int) -> torch.Tensor:
        """``[rows, extents of a row, elements]``: what tokens [first, length) have beyond the last page that
        lies wholly inside them. No other row has these pages, so they may be written."""
        page = self.lease.page_bytes
        end = length * self.record_bytes
        begin = max(first * self.record_bytes, end // page * page)
        extent = self.lease.extent_bytes // dtype.itemsize
        each = self.extents // self.rows
        return tensor_over(
            self.lease,
            dtype,
            shape=(self.rows, each, (end - begin) // dtype.itemsize),
            strides=(each * extent, extent, 1),
            offset_bytes=begin,
        )


def shared_tokens(places: list[Place], limit: int, end: int) -> tuple[int, int]:
    """Which tokens of rows that are alike share pages, where tokens up to ``limit`` have pages already and
    up to ``end`` are written: from the first to before the second. None where records straddle pages."""
    page, record = places[0].lease.page_bytes, places[0].record_bytes
    if page % record != 0 or any(place.record_bytes != record for place in places):
        return end, end
    return limit, max(limit, end * record // page * page // record)


def alike(*states: torch.Tensor) -> list[int] | None:
    """For each row the first of the rows before it that are all the same, bit for bit; None where no two
    neighbours are. Samples and beams of one prompt are neighbours."""
    like = [0]
    for row in range(1, len(states[0])):
        same = all(_same_bits(each[row], each[row - 1]) for each in states)
        like.append(like[-1] if same else row)
    return like if like != list(range(len(like))) else None


def _same_bits(one: torch.Tensor, other: torch.Tensor) -> bool:
    one, other = (each.view(_INTEGERS[each.itemsize]) for each in (one, other))
    # Prompts that differ mostly do so at their ends, where it is seen at once.
    return torch.equal(one[:, -1], other[:, -1]) and torch.equal(one, other)
