"""A layer outside of vmm's memory, as pickle takes it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from vmm.integrations.transformers.memory import CacheMemory

if TYPE_CHECKING:
    from vmm.integrations.transformers.layer import VmmLayer


@dataclass(frozen=True)
class SavedLayer:
    """``states`` are K and V of the last of so many tokens; none where there are no tokens."""

    kind: type[VmmLayer]
    options: dict[str, Any]
    tokens: int
    states: tuple[torch.Tensor, ...]

    def loaded(self, memory: CacheMemory) -> VmmLayer:
        layer = self.kind(memory, **self.options)
        if not self.states:
            return layer
        first, length = self.tokens - self.states[0].shape[2], self.tokens
        with torch.no_grad():
            layer._reserve(*self.states)
            layer._grow_to(first, length)
            for space, states in zip((layer._key_space, layer._value_space), self.states, strict=True):
                space[:, :, first:length].copy_(states)
            layer._first = first
            layer._show(length)
        layer.is_initialized = True
        return layer
