"""A sequence, which is one request's tokens in a KVCache, and many sequences as kernels want them."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from vmm.arguments import checked_number
from vmm.closing import Closing
from vmm.errors import Closed, InvalidArgument, OutOfPages, SequenceLost
from vmm.kv_cache.arguments import token_ids
from vmm.stream import release_after, torch_stream
from vmm.tiers import checked_hint, seconds

if TYPE_CHECKING:
    from vmm.kv_cache.cache import KVCache


@dataclass(frozen=True)
class Batch:
    """Sequences as kernels want them: int32 tensors on the CPU."""

    slots: torch.Tensor  #: [n]
    lengths: torch.Tensor  #: [n]; FlashAttention's seqused_k
    starts: torch.Tensor  #: [n + 1], in tokens from the cache's start; FlashAttention's cu_seqlens_k


class Sequence(Closing):
    """A sequence, which ``cache.open()`` opens and ``close``, or the end of a ``with`` block, closes."""

    def __init__(self, cache: KVCache, slot: int, cached_tokens: int = 0) -> None:
        self.cache = cache
        self.cached_tokens = cached_tokens  #: how many tokens it began with, because others had computed them
        self._slot: int | None = slot

    @property
    def slot(self) -> int:
        """The sequence's place in the cache, from 0 to ``max_sequences - 1``. Raises Closed."""
        if self._slot is None:
            raise Closed("this sequence is closed")
        return self._slot

    @property
    def length(self) -> int:
        """How many tokens the sequence has, by the last step that named it."""
        return self.cache._engine.length(self.slot)

    def kv(self, layer: int) -> tuple[torch.Tensor, torch.Tensor]:
        """K and V of this sequence so far: ``[length, heads, dim]`` each. In a layer with a window they begin
        at the first token that the last step attends to, or that a kernel's tile reaches; the last row is
        token ``length - 1`` always."""
        k, v = self.cache.kv(layer)
        slot, length = self.slot, self.length
        first = 0
        if window := self.cache._shapes[layer].window:
            first = max(0, self.cache._engine.previous_length(slot) + 1 - window)
        return k[slot, first:length], v[slot, first:length]

    def announce(self, tokens: int) -> None:
        """Tells the pager that tokens up to ``tokens`` will be needed soon, for the next chunk of a prompt,
        say. Waits for nothing."""
        self.cache._engine.announce(self.slot, checked_number("tokens", tokens, 0, self.cache.max_tokens))

    def commit(self, tokens: Any) -> None:
        """Makes tokens findable: sequences that are opened with the same tokens from the start, and the same
        salt, begin with them. ``tokens`` are ids of this sequence that follow those of which it has been
        said before (at first: its ``cached_tokens``), and work that computes their K and V is under way, or
        done, on the stream that stepped the sequence. They are found in whole blocks of 16, also after the
        sequence was closed, until memory is short or nobody has used them for the pool's ``idle_seconds``.
        Where the pool has tiers, what closed sequences leave is copied there while memory becomes short, and
        is found until the tiers are full.

        Raises InvalidArgument for more tokens than the sequence has, and for anything but ids. Takes a few
        hundred nanoseconds for a block."""
        ids = token_ids("tokens", tokens)
        self.cache._engine.commit(self.slot, ids.data_ptr(), len(ids))

    def fork(self, n: int, *, stream: Any = None) -> list[Sequence]:
        """Opens ``n`` sequences with the same tokens, for samples or beams of one prompt, say. They share the
        memory of this one: a page that holds only these tokens is mapped in their slots, too, and the page
        that the next token goes to is copied, on ``stream`` (default: torch's current stream), which must be
        the one that stepped this sequence last. All of them can be stepped, forked and closed in any order.

        Raises InvalidArgument when fewer than ``n`` slots are free; OutOfPages where there is no memory for
        the copies; Error where another stream's work on this sequence is not over, or where free slots still
        belong to another stream's open epoch. Then nothing has changed. It may wait for work that still reads
        the slots' last sequences."""
        checked_number("n", n, 0, self.cache.max_sequences)
        slots = self.cache._engine.fork(self.slot, n, self.cache._stream(stream))
        return [Sequence(self.cache, slot) for slot in slots]

    def park(
        self, *, idle_s: float | None = None, category: str = "", priority: int = 0, stream: Any = None
    ) -> None:
        """The sequence is idle from now on: its user thinks, or a tool runs. It keeps its slot and its
        addresses, but where memory is short others get what it has, once that has been copied to a tier of
        the pool (``Pool(host=, nvme=)``). A step that names it brings it back, as `truncate` and `fork` do;
        `KVCache.prefetch` does so earlier, and `ready` says when it is there. What a layer's window has left
        is gone then. Nothing waits here, and it costs little where memory is not short.

        ``category`` names its kind, and ``idle_s`` is your guess how long it will be idle. From both the
        policy ``predictive`` learns how long such sequences are idle, so the guess need not be good.
        ``priority`` is for the policy of that name. ``stream`` (default: torch's current stream) is the one
        that its last work is on.

        Raises InvalidArgument where the pool has no tiers, and for a sequence that is parked; Error where
        another stream's fork of it is not over."""
        hint = checked_hint(category, priority, idle_s)
        release_after(self.cache.pool, stream, named=True)
        self.cache._engine.park(self.slot, *hint, self.cache._stream(stream))

    @property
    def ready(self) -> bool:
        """Whether a step that names this sequence would not have to wait for its tokens: it is not parked, or
        all of it is on the device."""
        return self.cache._engine.ready(self.slot)

    @property
    def load_s(self) -> float | None:
        """How many seconds it takes, from now on, until the sequence is `ready` if it is prefetched or
        stepped: what of it is away, and what is loaded before it, at the rate at which the pool's tiers were
        read lately. 0.0 where nothing is away; None where nothing has been read yet from a tier that has some
        of it. Waiting for memory is not in it. If the model computes the tokens faster than this, close the
        sequence and open another."""
        return seconds(self.cache._engine.load_ns(self.slot))

    @property
    def lost_tokens(self) -> int:
        """How many of its tokens the sequence has lost for ever: see `vmm.SequenceLost`."""
        return self.cache._engine.lost(self.slot)

    def truncate(self, n: int) -> None:
        """Forgets tokens from ``n`` on, which speculation got wrong, say. Their memory stays mapped until
        memory is short, or nobody has needed it for the pool's ``idle_seconds``. If the page of token ``n``
        is shared with forks, it is copied: that waits for the work that reads it, and may raise OutOfPages,
        before anything has changed; if the driver fails in the middle of it, this raises DriverError, and the
        sequence has no tokens any more. Raises InvalidArgument for more tokens than there are. If a layer has
        a window, it does so for fewer tokens than before the last step, too, except 0, because what the
        window had before them is gone."""
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
            self.cache._opened.close(self._slot, self.cache._stream(stream))
        self._slot = None


def slots_of(cache: KVCache, argument: str, sequences: Iterable[Sequence]) -> list[int]:
    """The slots of open sequences of ``cache``. Raises InvalidArgument for anything else among ``sequences``
    and Closed for a closed sequence; both name ``argument`` and the position in it."""
    if not isinstance(sequences, Iterable):
        raise InvalidArgument(f"{argument} is {sequences!r}; expected sequences of this cache")
    slots = []
    for at, sequence in enumerate(sequences):
        if not isinstance(sequence, Sequence):
            raise InvalidArgument(f"{argument}[{at}] is {sequence!r}; expected a sequence of this cache")
        if sequence.cache is not cache:
            raise InvalidArgument(f"{argument}[{at}] is of another cache; expected a sequence of this one")
        if (slot := sequence._slot) is None:  # another thread may close it after this
            raise Closed(f"{argument}[{at}]: this sequence is closed")
        slots.append(slot)
    return slots


def step_sequences(cache: KVCache, lengths: Mapping[Sequence, int], stream: int) -> None:
    """`KVCache.step` with sequences instead of slots."""
    engine = cache._engine
    if not lengths:
        raise InvalidArgument("slots is empty; expected {sequence: length}, or end() for an idle engine")
    slots = array("i", slots_of(cache, "slots", lengths))
    numbers = array("i")
    for at, length in enumerate(lengths.values()):
        numbers.append(checked_number(f"lengths[{at}]", length, 0, cache.max_tokens))
    try:
        engine.step(*slots.buffer_info(), *numbers.buffer_info(), stream)
    except OutOfPages as error:
        given = dict(zip(slots, lengths, strict=True))
        error.fitting = tuple(given[slot] for slot in error.fitting)
        raise
    except SequenceLost as error:
        given = dict(zip(slots, lengths, strict=True))
        error.sequences = tuple(given[slot] for slot in error.sequences)
        raise
