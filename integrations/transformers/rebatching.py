"""A layer's rows repeated, selected or reordered: whole pages are shared, and the rest is copied."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch.autograd.graph import increment_version

from vmm._core import GrowthMove
from vmm.errors import MappingLimit
from vmm.integrations.transformers.memory import CacheMemory
from vmm.stream import torch_stream

if TYPE_CHECKING:
    from vmm.integrations.transformers.layer import VmmLayer


class Rebatching:
    """What a VmmLayer does with its rows, before the stock layer's ways, which it has where it fell back."""

    def rebatched(self, rows: list[int], memory: CacheMemory | None = None) -> VmmLayer:
        """A layer whose row i is what row rows[i] is here, at other addresses. Whole pages are shared."""
        fresh = type(self)(memory or self._memory, **self._options())
        fresh._reserve(self.keys, self.values, batch=len(rows))
        if not self._share_with(fresh, rows):
            self._copy_to(fresh, rows)
        fresh._first = self._first
        fresh._show(self.length)
        fresh.is_initialized = True
        return fresh

    def _share_with(self, fresh: VmmLayer, rows: list[int]) -> bool:
        """False where nothing can be shared: the layouts differ, or mappings are short."""
        places = list(zip(fresh._places, self._places, strict=True))
        if not all(theirs.is_like(ours) for theirs, ours in places):
            return False
        try:
            self._memory.with_room(lambda: fresh._take_rows(self, rows))
        except MappingLimit:
            # What shares pages lies in more pieces than what does not.
            fresh._reserve(self.keys, self.values, batch=len(rows))
            return False
        source = torch.tensor(rows, device=self.device)
        for theirs, ours in places:
            rest = ours.rest(self.dtype, self._first, self.length)
            theirs.rest(self.dtype, self._first, self.length).copy_(rest.index_select(0, source))
        return True

    def _take_rows(self, other: VmmLayer, rows: list[int]) -> None:
        self._allow(self.growth.take_rows(other.growth, rows, other.length))

    def _copy_to(self, fresh: VmmLayer, rows: list[int]) -> None:
        first, length = self._first, self.length
        fresh._grow_to(first, length)
        # Row by row: a gather of all rows at once would need the layer's memory a third time.
        for to, row in enumerate(rows):
            fresh._key_space[to, :, first:length].copy_(self.keys[row])
            fresh._value_space[to, :, first:length].copy_(self.values[row])

    def prepare_move(self, rows: list[int]) -> GrowthMove:
        """Nothing has changed yet. Raises MappingLimit where pages cannot be shared any more."""
        return self.growth.prepare_move(rows, self.length)

    def finish_move(self, move: GrowthMove, rows: list[int]) -> None:
        """Row i gets what row rows[i] has: whole pages by mapping, the rest by copying."""
        to, source = (
            torch.tensor(each, device=self.device)
            for each in zip(*((to, row) for to, row in enumerate(rows) if to != row), strict=True)
        )
        torch_stream(self._memory.pool)
        move.finish()
        for place in self._places:
            rest = place.rest(self.dtype, self._first, self.length)
            rest.index_copy_(0, to, rest.index_select(0, source))
        increment_version((self._key_space, self._value_space))

    def become(self, other: VmmLayer) -> None:
        self.__dict__.update(other.__dict__)

    def reorder_cache(self, beam_idx: torch.LongTensor) -> None:
        if self.growth is None:
            super().reorder_cache(beam_idx)
        elif self.length:
            self._choose(beam_idx)

    def batch_repeat_interleave(self, repeats: int) -> None:
        if self.growth is None:
            super().batch_repeat_interleave(repeats)
        elif self.length:
            self._choose(torch.arange(self.keys.shape[0]).repeat_interleave(repeats))

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        if self.growth is None:
            super().batch_select_indices(indices)
        elif self.length:
            self._choose(indices)

    def _choose(self, indices: torch.Tensor) -> None:
        self.become(self.rebatched(torch.arange(self.keys.shape[0])[indices.cpu()].tolist()))
