"""One request's tokens in a KVCache, and many of them as kernels want them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from vmm.closing import Closing
from vmm.errors import Closed
from vmm.kv_cache.arguments import checked_number
from vmm.stream import handle_of, release_after, torch_stream

if TYPE_CHECKING:
    from vmm.kv_cache.cache import KVCache


@dataclass(frozen=True)
class Batch:
    """Sequences as kernels want them, int32, on the CPU."""

    slots: torch.Tensor  #: [n]
    lengths: torch.Tensor  #: [n]; FlashAttention's seqused_k
    starts: torch.Tensor  #: [n + 1], in tokens from the cache's start; FlashAttention's cu_seqlens_k


class Sequence(Closing):
    """One open sequence: ``cache.open()`` makes it. Closed by ``close``, or by leaving it as a context."""

    def __init__(self, cache: KVCache, slot: int) -> None:
        self.cache = cache
        self._slot: int | None = slot

    @property
    def slot(self) -> int:
        if self._slot is None:
            raise Closed("this sequence is closed")
        return self._slot

    @property
    def length(self) -> int:
        """Tokens, as of the last step that named it."""
        return self.cache._engine.length(self.slot)

    def kv(self, layer: int) -> tuple[torch.Tensor, torch.Tensor]:
        """K and V of this sequence so far: ``[length, heads, dim]`` each. In a layer with a window the rows
        are missing that no token of the last step attends to, nor a kernel's tile reaches; the last row is
        token ``length - 1``."""
        k, v = self.cache.kv(layer)
        slot, length = self.slot, self.length
        first = 0
        if window := self.cache._shapes[layer].window:
            first = max(0, self.cache._engine.previous_length(slot) + 1 - window)
        return k[slot, first:length], v[slot, first:length]

    def announce(self, tokens: int) -> None:
        """Tokens up to ``tokens`` will be needed soon: the next chunk of a prompt. Waits for nothing."""
        self.cache._engine.announce(self.slot, checked_number("tokens", tokens, 0, self.cache.max_tokens))

    def truncate(self, n: int) -> None:
        """Forgets tokens from ``n`` on: what speculation got wrong. Their memory stays mapped until memory is
        short, or nobody has needed it for the pool's ``idle_seconds``. Raises InvalidArgument for more than
        there are; and, if a layer has a window, for fewer than before the last step, but 0: what the window
        holds before them is gone."""
        tokens = checked_number("n", n, 0, self.cache.max_tokens)
        self.cache._engine.truncate(self.slot, tokens, torch_stream(self.cache.pool))

    def close(self, stream: Any = None) -> None:
        """Frees the slot. Work on the streams that stepped it, as far as it belongs to open and unfinished
        epochs, and what is on ``stream`` now (default: torch's current stream), may still read it. Closing
        twice does nothing."""
        if self._slot is None:
            return
        if self.cache._opened is not None:
            release_after(self.cache.pool, stream, named=True)
            current = torch_stream(self.cache.pool)
            self.cache._opened.close(self._slot, current if stream is None else handle_of(stream))
        self._slot = None
