"""Which layout a cache gets: what was asked for, or what suits the device and the process."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from vmm.arguments import checked_number
from vmm.errors import InvalidArgument
from vmm.limits import fits_int32, fits_mappings, too_many_mappings, warn_of_int32
from vmm.pool import Pool
from vmm.records import LayerShape, Records, fewest_extents, head_major, token_major

SlotElements = Callable[[Records], int]  # the most elements from one slot to the next


def chosen_records(
    shapes: list[LayerShape],
    layout: Any,
    layers_per_extent: Any,
    pool: Pool,
    max_sequences: int,
    *,
    slot_elements: SlotElements,
) -> Records:
    """The layout of a cache. Raises InvalidArgument where the process may not have as many memory mappings as
    the cache would take. On a GPU it warns of slots so large that kernels which compute with 32 bits would be
    wrong."""
    records = _chosen(shapes, layout, layers_per_extent, pool, max_sequences, slot_elements=slot_elements)
    if pool._core.gpu and not fits_int32(elements := slot_elements(records)):
        fewer = ", or fewer layers_per_extent" if len(records.parts) < len(shapes) else ""
        warn_of_int32(f"max_tokens: a slot has {elements} elements; expect fewer tokens{fewer}")
    return records


def _chosen(
    shapes: list[LayerShape],
    layout: Any,
    layers_per_extent: Any,
    pool: Pool,
    max_sequences: int,
    *,
    slot_elements: SlotElements,
) -> Records:
    if layout is not None and layout not in ("token-major", "head-major"):
        raise InvalidArgument(f"layout is {layout!r}; expected 'token-major' or 'head-major'")
    if layers_per_extent is not None:
        checked_number("layers_per_extent", layers_per_extent, 1, len(shapes))
        if layout == "head-major":
            raise InvalidArgument("layers_per_extent: of the layout 'token-major' only")
    most = pool._core.max_mappings

    def fits(records: Records) -> bool:
        return fits_mappings(max_sequences * sum(part.extents for part in records.parts), most)

    by_heads = head_major(shapes)
    if layout == "head-major" or (layout is None and layers_per_extent is None and not pool._core.gpu):
        if fits(by_heads):
            return by_heads
        if layout is not None:
            raise _too_many(most)
    if layers_per_extent is None and pool._core.gpu:
        records = fewest_extents(shapes, slot_elements)
    else:
        records = token_major(shapes, layers_per_extent or 1)
    if not fits(records) and layers_per_extent is None:
        records = token_major(shapes, len(shapes))
    if not fits(records):
        raise _too_many(most)
    return records


def _too_many(max_mappings: int) -> InvalidArgument:
    instead = "fewer sequences, or more layers per extent"
    return too_many_mappings("max_sequences: the slots", max_mappings, instead)
