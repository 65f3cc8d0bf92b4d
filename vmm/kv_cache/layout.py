"""Which layout a cache gets: what was asked for, or what suits the device and the process."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from vmm.arguments import checked_number
from vmm.errors import InvalidArgument
from vmm.limits import fits_int32, fits_mappings, too_many_mappings, warn_of_int32
from vmm.pool import Pool
from vmm.records import LayerShape, LayoutName, Records, fewest_extents, head_major, token_major

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
    if layout is not None and layout not in ("token-major", "head-major"):
        raise InvalidArgument(f"layout is {layout!r}; expected 'token-major' or 'head-major'")
    if layers_per_extent is not None:
        checked_number("layers_per_extent", layers_per_extent, 1, len(shapes))
        if layout == "head-major":
            raise InvalidArgument("layers_per_extent: of the layout 'token-major' only")
    gpu, max_mappings = pool._core.gpu, pool._core.max_mappings
    for records in _candidates(shapes, layout, layers_per_extent, gpu, slot_elements):
        if fits_mappings(max_sequences * sum(part.extents for part in records.parts), max_mappings):
            break
    else:
        instead = "fewer sequences, or more layers per extent"
        raise too_many_mappings("max_sequences: the slots", max_mappings, instead)
    if gpu and not fits_int32(elements := slot_elements(records)):
        fewer = ", or fewer layers_per_extent" if len(records.parts) < len(shapes) else ""
        warn_of_int32(f"max_tokens: a slot has {elements} elements; expect fewer tokens{fewer}")
    return records


def _candidates(
    shapes: list[LayerShape],
    layout: LayoutName | None,
    layers_per_extent: int | None,
    gpu: bool,
    slot_elements: SlotElements,
) -> Iterator[Records]:
    """The layouts that a cache may have, the best first."""
    if layout == "head-major" or (layout is None and layers_per_extent is None and not gpu):
        yield head_major(shapes)
    if layout == "head-major":
        return
    if layers_per_extent is not None:
        yield token_major(shapes, layers_per_extent)
        return
    yield fewest_extents(shapes, slot_elements) if gpu else token_major(shapes, 1)
    yield token_major(shapes, len(shapes))
