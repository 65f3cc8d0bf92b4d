"""One sliding-window layer's K and V in vmm's memory."""

from __future__ import annotations

from typing import Any

import torch
from transformers.cache_utils import DynamicSlidingWindowLayer

from vmm.errors import InvalidArgument
from vmm.integrations.transformers.layer import VmmLayer
from vmm.integrations.transformers.memory import CacheMemory


class VmmSlidingLayer(VmmLayer, DynamicSlidingWindowLayer):
    """A ``DynamicSlidingWindowLayer`` that grows in place, and gives back the pages that its window has left.

    It shows the same tokens as the stock layer: the last ``sliding_window - 1``, or all since the last
    ``crop`` where the past is recorded. Pages behind what a forward may read go when that forward begins, so
    what ``update`` returned stays readable until the next one.
    """

    def __init__(self, memory: CacheMemory, sliding_window: int, record_past: bool = False) -> None:
        super().__init__(memory, sliding_window=sliding_window)
        self.record_past = record_past

    @property
    def window(self) -> int:
        return self.sliding_window

    def _options(self) -> dict[str, Any]:
        return {"sliding_window": self.sliding_window, "record_past": self.record_past}

    def _forget(self) -> None:
        super()._forget()
        self.cumulative_length = 0
        self._slides_at = 0  # the first token held at which there are pages to give up

    def _show(self, length: int) -> None:
        self.length = self.cumulative_length = length
        shown = slice(self._first, length)
        self.keys, self.values = (self._view(space, shown) for space in (self._key_space, self._value_space))

    def _start_of_window(self, length: int) -> int:
        """The first token that the next one attends to."""
        return max(self._first, length + 1 - self.sliding_window)

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        self._first = 0
        super().lazy_initialization(key_states, value_states)
        self._sliding_window_tensor = self._sliding_window_tensor.to(self.device)

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        if self._first >= self._slides_at and self._first and self.growth is not None:
            self._slides_at = self.growth.slide(self._first, self.length)
        keys, values = super().update(key_states, value_states, *args, **kwargs)
        if self.growth is None:
            return keys, values
        if self.length == self._limit < self._memory.max_tokens:
            # The next token comes into a new page, which the pager maps while the model computes.
            self.growth.announce(self.length + 1)
        start = self._start_of_window(self.length)
        if self.record_past:  # crop() moves the window
            visible = slice(self._start_of_window(self.length - key_states.shape[2]), self.length)
            return self._view(self._key_space, visible), self._view(self._value_space, visible)
        if start != self._first:
            self._first = start
            self._show(self.length)
        return keys, values

    def _leave(self) -> None:
        length = self.length
        super()._leave()
        if self.is_initialized:
            self.cumulative_length = max(length, self.cumulative_length)

    def _grow_to(self, first: int, length: int) -> None:
        """Window by window: what lies before the first token need not be there at once."""
        at = 0
        while at < length:
            at = min(at + self.sliding_window, length)
            self._allow(self._memory.with_room(lambda to=at: self.growth.advance(to)))
            self._slides_at = self.growth.slide(min(first, at), at)

    def get_max_length(self) -> int:
        return DynamicSlidingWindowLayer.get_max_length(self)

    def prepare_crop(self, tokens_to_remove: int) -> None:
        if self.growth is None or tokens_to_remove > 0:
            return
        length = self.length + tokens_to_remove
        if self.length >= self.sliding_window:
            if not self.record_past:
                DynamicSlidingWindowLayer.crop(self, tokens_to_remove)  # raises
            if length < 0 or length + 1 - self.sliding_window < self._first != 0:
                raise InvalidArgument(
                    f"tokens_to_remove is {tokens_to_remove}; of the {self.length} tokens those before"
                    f" {self._first} were given up, and a window of {self.sliding_window} needs them"
                )
        super().prepare_crop(tokens_to_remove)

    def crop(self, tokens_to_remove: int) -> None:
        if self.growth is None:
            if self.is_initialized:
                DynamicSlidingWindowLayer.crop(self, tokens_to_remove)
            return
        self.prepare_crop(tokens_to_remove)
        was_full = self.length >= self.sliding_window
        first = self._start_of_window(max(0, self.length + tokens_to_remove)) if was_full else self._first
        self._first, before = first, self._first
        try:
            super().crop(tokens_to_remove)
        except BaseException:
            self._first = before
            raise
        if was_full:
            self._show(self.length)  # also where nothing is removed
