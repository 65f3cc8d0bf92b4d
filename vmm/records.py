"""Where the K and V of each layer lie in a slot: address arithmetic, in elements.

A slot has a place in each *part*; a part's piece of a slot is one or more *extents* that grow in lockstep,
and an extent holds one record per token. Token-major, a part is a group of layers, with one extent whose
record is ``[layers of the group, K|V, heads, dim]``; head-major, a part is the K or V of a layer, with an
extent for each head and a record of ``[dim]``. Layers of different windows are never in one part.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

from vmm.limits import fits_int32
from vmm.units import rounded_up

LayoutName = Literal["token-major", "head-major"]


@dataclass(frozen=True)
class LayerShape:
    """The shape of one layer's K, and of its V. A token attends to the last ``window`` tokens, itself
    included, or to all where that is 0."""

    kv_heads: int
    head_dim: int
    window: int = 0


@dataclass(frozen=True)
class Part:
    """``extents`` of a slot, each with a record of ``record`` elements. Where there is one extent, heads lie
    side by side in the record; otherwise each head has an extent."""

    extents: int
    record: int
    window: int = 0

    def strides(self, extent_elements: int, dim: int) -> tuple[int, int, int, int]:
        """The strides, in elements, of a layer's K or V as ``[slots, tokens, heads, dim]``."""
        heads = dim if self.extents == 1 else extent_elements
        return (self.extents * extent_elements, self.record, heads, 1)


@dataclass(frozen=True)
class Where:
    """One layer's K or V: in the record of ``part`` from ``offset`` on."""

    part: int
    offset: int
    heads: int
    dim: int


@dataclass(frozen=True)
class Records:
    """The layout of one cache: its parts, and for each layer where K and V are."""

    name: LayoutName
    parts: tuple[Part, ...]
    layers: tuple[tuple[Where, Where], ...]


def token_major(shapes: list[LayerShape], layers_per_extent: int) -> Records:
    """The layout with up to ``layers_per_extent`` layers of one window side by side in a token's record."""
    parts: list[Part] = []
    layers: dict[int, tuple[Where, Where]] = {}
    for group in _groups(shapes, layers_per_extent):
        offset = 0
        for layer in group:
            shape = shapes[layer]
            size = shape.kv_heads * shape.head_dim
            k, v = (Where(len(parts), at, shape.kv_heads, shape.head_dim) for at in (offset, offset + size))
            layers[layer] = k, v
            offset += 2 * size
        parts.append(Part(extents=1, record=offset, window=shapes[group[0]].window))
    return Records("token-major", tuple(parts), tuple(layers[i] for i in range(len(shapes))))


def _groups(shapes: list[LayerShape], most: int) -> Iterator[list[int]]:
    """Groups of at most ``most`` layers, all of one window."""
    for window in dict.fromkeys(shape.window for shape in shapes):
        same = [layer for layer, shape in enumerate(shapes) if shape.window == window]
        for first in range(0, len(same), most):
            yield same[first : first + most]


def head_major(shapes: list[LayerShape]) -> Records:
    """The layout with an extent for each head of each layer's K and V."""
    parts: list[Part] = []
    layers: list[tuple[Where, Where]] = []
    for shape in shapes:
        k, v = (Where(len(parts) + at, 0, shape.kv_heads, shape.head_dim) for at in range(2))
        layers.append((k, v))
        parts += [part_of_one("head-major", shape.kv_heads, shape.head_dim, shape.window)] * 2
    return Records("head-major", tuple(parts), tuple(layers))


def part_of_one(name: LayoutName, heads: int, dim: int, window: int = 0) -> Part:
    """The part that holds one layer's K, or its V, and nothing else."""
    return Part(heads, dim, window) if name == "head-major" else Part(1, heads * dim, window)


def tokens_of_extent(part: Part, tokens: int, itemsize: int, page_bytes: int) -> int:
    """The least number of tokens, at least ``tokens``, whose records fill whole pages. With so many all slots
    of a part are one view ``[slots * tokens, ...]``, although a record may straddle two pages."""
    unit = page_bytes // math.gcd(part.record * itemsize, page_bytes)
    return rounded_up(tokens, unit)


def slot_tokens(records: Records, tokens: int, itemsize: int, page_bytes: int) -> int:
    """The tokens of a slot. They are the same in every part, so that one set of starts is right for all
    layers."""
    # Parts fill whole pages in multiples of powers of two, so the largest of these fills them in every part.
    return max(tokens_of_extent(part, tokens, itemsize, page_bytes) for part in records.parts)


def slot_elements(records: Records, tokens: int, itemsize: int, page_bytes: int) -> int:
    """The elements from one slot to the next, in the part where they are most."""
    most = max(part.extents * part.record for part in records.parts)
    return slot_tokens(records, tokens, itemsize, page_bytes) * most


def fewest_extents(shapes: list[LayerShape], elements: Callable[[Records], int]) -> Records:
    """The layout that a cache on a GPU gets by default: as many layers in an extent as kernels can count in
    32 bits, spread evenly, or one layer where they cannot count even that. ``elements`` counts those of a
    slot."""
    for extents in range(1, len(shapes)):
        records = token_major(shapes, -(-len(shapes) // extents))
        if fits_int32(elements(records)):
            return records
    return token_major(shapes, 1)
