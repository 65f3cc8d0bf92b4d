"""KVCache: K and V of many sequences, each in a slot that is contiguous, has a fixed address, and grows."""

from __future__ import annotations

import os
from collections.abc import Mapping
from collections.abc import Sequence as Ordered
from dataclasses import replace
from typing import Any, overload

import torch

from vmm import _core
from vmm.arguments import checked_number, chosen_page_bytes
from vmm.closing import Closing
from vmm.dlpack import checked_float
from vmm.errors import Closed, InvalidArgument
from vmm.kv_cache.arguments import checked_salt, checked_shapes, int32_numbers, token_ids
from vmm.kv_cache.cache_stats import CacheStats
from vmm.kv_cache.layout import chosen_records
from vmm.kv_cache.restoring import restore
from vmm.kv_cache.saving import SaveReport, save
from vmm.kv_cache.sequence import Batch, Sequence, slots_of, step_sequences
from vmm.kv_cache.slot_memory import SlotMemory
from vmm.pool import Pool
from vmm.records import LayoutName, slot_elements, slot_tokens
from vmm.stream import handle_of, torch_stream
from vmm.tenant import Tenant, pool_for
from vmm.tiers import checked_by_s

# Kernels load whole tiles of K and V, of up to 256 tokens in FlashAttention 3 and 4. The first tile may begin
# before the window does.
_TILE_TOKENS = 256


class KVCache(Closing):
    """The K and V of up to ``max_sequences`` sequences of up to ``max_tokens`` tokens in ``layers`` layers.

    ``kv_heads``, ``head_dim`` and ``window`` take one number, or one for each layer. In a layer with a window
    a token attends only to the last ``window`` tokens, itself included (``None`` or 0: to all). The cache
    takes memory from ``pool``, or from a pool of its own with ``budget``, or from the device's default pool.
    Only what running sequences need is mapped, in pages of ``page_bytes``. The cache and all its sequences
    belong to ``tenant``, if there is one.

    ``layout`` is ``"token-major"``, where ``layers_per_extent`` layers lie side by side in a token's record,
    or ``"head-major"``, with which attention on CPUs is faster. The default on a GPU is token-major, with as
    many layers as keep a slot below 2^31 elements, because some kernels count no further: where a slot has
    more, a RuntimeWarning names them. On a CPU it is head-major while the process has enough mappings for it.

    ``tail_tokens`` past each length, and before each window, stay mapped, and finite, for kernels that load
    whole tiles (256 for FlashAttention 3 and 4; before a window 256 is the least on a GPU).
    ``tokens_per_step`` says by how many tokens a decoding sequence grows: 1, or more with speculation.
    ``first_tokens`` says how many tokens a sequence's first step computes at most (a prompt's first chunk).
    While memory is not short, slots with so much mapped lie ready for sequences that come unannounced; with 0
    they have as much as first steps lately needed.

    Making one raises InvalidArgument, which names the argument. Every method is safe from any thread.
    """

    def __init__(
        self,
        layers: int,
        kv_heads: int | Ordered[int],
        head_dim: int | Ordered[int],
        dtype: torch.dtype = torch.bfloat16,
        *,
        window: int | Ordered[int | None] | None = None,
        max_tokens: int,
        max_sequences: int,
        device: torch.device | str | None = None,
        budget: int | str | None = None,
        pool: Pool | None = None,
        layout: LayoutName | None = None,
        layers_per_extent: int | None = None,
        page_bytes: int | None = None,
        tail_tokens: int = 0,
        tokens_per_step: int = 1,
        first_tokens: int = 0,
        tenant: Tenant | None = None,
    ) -> None:
        shapes = checked_shapes(layers, kv_heads, head_dim, window)
        self.dtype = checked_float(dtype)
        self.max_tokens = checked_number("max_tokens", max_tokens, 1, 2**31 - 1)
        self.max_sequences = checked_number("max_sequences", max_sequences, 1, 2**20)
        self._tail = checked_number("tail_tokens", tail_tokens, 0, 2**16)
        checked_number("tokens_per_step", tokens_per_step, 1, 2**16)
        checked_number("first_tokens", first_tokens, 0, 2**31 - 1)
        self._owns_pool = pool is None and budget is not None
        self.pool = pool_for(tenant, pool, budget, device)
        self.tenant = tenant  #: whom it and its sequences belong to
        self._page_bytes = chosen_page_bytes(page_bytes, self.pool)
        more = max(self._tail, _TILE_TOKENS if self.pool._core.gpu else 0)
        self._windows = tuple(shape.window for shape in shapes)
        self._shapes = [replace(shape, window=shape.window and shape.window + more) for shape in shapes]
        slot = (self.max_tokens + self._tail, dtype.itemsize, self._page_bytes)
        self._records = chosen_records(
            self._shapes,
            layout,
            layers_per_extent,
            self.pool,
            self.max_sequences,
            slot_elements=lambda records: slot_elements(records, *slot),
        )
        memory = SlotMemory(self.max_sequences, slot_tokens(self._records, *slot), dtype)
        self._leases = [
            memory.reserve(self.pool, part, self._page_bytes, self.tenant) for part in self._records.parts
        ]
        self._opened: _core.KvCache | None = _core.KvCache(
            self.pool._core,
            [
                (lease, part.extents, part.record * dtype.itemsize, part.window)
                for lease, part in zip(self._leases, self._records.parts, strict=True)
            ],
            self.max_sequences,
            tail=self._tail,
            tokens_per_step=tokens_per_step,
            max_tokens=self.max_tokens,
            first_tokens=first_tokens,
        )
        self._views = memory.views(self._leases, self._records)

    # Once per iteration.

    @overload
    def step(self, slots: Any, lengths: Any, stream: Any = None) -> None: ...
    @overload
    def step(self, slots: Mapping[Sequence, int], *, stream: Any = None) -> None: ...
    def step(self, slots: Any, lengths: Any = None, stream: Any = None) -> None:
        """The next iteration: after it, the sequences in ``slots`` have ``lengths`` tokens. Maps what is
        missing, which the pager mostly did before; closes ``stream``'s last epoch and opens the next
        (default: torch's current stream).

        ``slots`` and ``lengths`` are int32 arrays of one length on the CPU (torch, NumPy, array.array). Or
        ``slots`` alone is ``{sequence: length}``, which is easier to write and slower, by 200 ns for each
        sequence.

        Raises InvalidArgument for a slot that is not open or is named twice, for a sequence of another cache,
        and for a length that is less than before or more than ``max_tokens``; Closed for a closed sequence;
        OutOfPages, whose ``fitting`` are the slots, or sequences where sequences were given, that could have
        had what they need; SequenceLost for parked ones that lost tokens; Error for a slot that an open epoch
        of another stream may still read for the sequence before. Then nothing has changed.
        """
        if lengths is None and isinstance(slots, Mapping):
            step_sequences(self, slots, self._stream(stream))
            return
        self._engine.step(
            *int32_numbers("slots", slots), *int32_numbers("lengths", lengths), self._stream(stream)
        )

    def end(self, stream: Any = None) -> None:
        """Closes ``stream``'s epoch without opening the next: the engine goes idle."""
        self._engine.end(self._stream(stream))

    def prefetch(self, sequences: Sequence | Ordered[Sequence], by_s: float | None = None) -> None:
        """These will be stepped in ``by_s`` seconds, or soon. Those of them that are parked, and away, are
        loaded meanwhile, those first that are wanted first, while others compute: a scheduler calls this
        when a request arrives, and admits it when ``sequence.ready``. Waits for nothing. What has been loaded
        goes again when others need the memory for what they keep; then another call loads it again.

        Raises InvalidArgument for anything but open sequences of this cache and a number of seconds from 0 to
        1e9, and Closed for a closed sequence."""
        some = [sequences] if isinstance(sequences, Sequence) else sequences
        seconds = checked_by_s(by_s)
        self._engine.prefetch(slots_of(self, "sequences", some), int(seconds * 1e9))

    def batch(self, sequences: Ordered[Sequence]) -> Batch:
        """The sequences for kernels that take all slots as one tensor. With a token-major layout this is
        ``kv(layer)[0].flatten(0, 1)``. Raises InvalidArgument for anything but sequences of this cache, and
        Closed for a closed one."""
        open_slots = slots_of(self, "sequences", sequences)
        slots = torch.tensor(open_slots, dtype=torch.int32)
        lengths = torch.tensor([self._engine.length(slot) for slot in open_slots], dtype=torch.int32)
        starts = torch.empty(len(open_slots) + 1, dtype=torch.int32)
        torch.mul(slots, self.tokens_per_slot, out=starts[:-1])
        starts[-1] = self.max_sequences * self.tokens_per_slot
        return Batch(slots, lengths, starts)

    # Sequences.

    def open(
        self,
        prompt_tokens: int = 0,
        *,
        tokens: Any = None,
        salt: bytes | str | None = None,
        announce: int | None = None,
        stream: Any = None,
    ) -> Sequence:
        """Opens a sequence in the free slot that fits best. The pager maps what its first ``announce`` tokens
        need while it waits (default: the whole prompt; say less where the prompt comes in chunks). Its first
        step will be on ``stream``.

        ``tokens`` are the ids of the prompt, instead of their number: a list, or an array of whole numbers on
        the CPU. Then the sequence begins with as many of them as other sequences have committed
        (``Sequence.commit``), whether these are open or closed: ``cached_tokens`` says how many, and
        ``length`` is that already. At least one token is left to compute. Sequences with another ``salt``
        find none of each other's tokens. If tokens are found, but all slots are still read by work under way,
        this waits for that work. If they have left the device for a tier, the sequence is parked: they are
        loaded already, ``ready`` says when they are there, and a step waits for them.

        Raises InvalidArgument when all slots are taken, and for bad arguments; DriverError where the driver
        fails when it maps what was found. Then nothing was opened."""
        if tokens is None and salt is None:
            announce = self._announced(
                announce, checked_number("prompt_tokens", prompt_tokens, 0, self.max_tokens)
            )
            return Sequence(self, self._engine.open(prompt_tokens, announce, self._stream(stream)))
        if prompt_tokens:
            raise InvalidArgument("prompt_tokens: expected none beside tokens, which says how many there are")
        ids = token_ids("tokens", [] if tokens is None else tokens)
        secret = checked_salt(salt)
        if len(ids) > self.max_tokens:
            raise InvalidArgument(f"tokens has {len(ids)} ids; max_tokens is {self.max_tokens}")
        announce = self._announced(announce, len(ids))
        slot, cached = self._engine.open_prompt(
            ids.data_ptr(), len(ids), secret, announce, self._stream(stream)
        )
        return Sequence(self, slot, cached)

    def _announced(self, announce: int | None, tokens: int) -> int:
        return tokens if announce is None else checked_number("announce", announce, 0, tokens)

    def kv(self, layer: int) -> tuple[torch.Tensor, torch.Tensor]:
        """K and V of all slots: ``[max_sequences, tokens_per_slot, heads, dim]`` each, the last dimension
        contiguous, at addresses that never change. Only tokens below a sequence's length, and ``tail_tokens``
        more, may be touched, and in a layer with a window only those it reaches: the rest is not mapped."""
        views = self._open_views()
        return views[checked_number("layer", layer, 0, len(views) - 1)]

    @property
    def tokens_per_slot(self) -> int:
        """The tokens from one slot to the next: ``max_tokens`` and the tail, rounded up to whole pages."""
        return int(self._open_views()[0][0].shape[1])

    def stats(self) -> CacheStats:
        """The sizes of this cache now. Raises Closed."""
        return CacheStats(
            sequences=self._engine.open_slots,
            live_bytes=self._engine.live_bytes,
            running_bytes=self._engine.held_bytes,
            mapped_bytes=sum(lease.mapped_bytes for lease in self._leases),
            horizon=self._engine.horizon,
            **self._engine.prefix_stats(),
            layout=self._records.name,
            bookkeeping_bytes=_core.KvCache.bytes_per_slot,
        )

    # Across a restart.

    def save(
        self,
        path: str | os.PathLike[str],
        sequences: Mapping[str, Sequence] | None = None,
        *,
        model: str = "",
    ) -> SaveReport:
        """Writes open sequences and, if no layer has a window, what closed ones have left to be found, to the
        file ``path``: see `restore`. ``sequences`` names those that are to be written; by default it is all
        that are parked, each under the number of its slot. They stay as they are, but those that are away are
        brought to the device, one at a time. ``model`` names the model and its weights: K and V are of no use
        to another.

        The file appears, or replaces an older one, when all of it is on the disk: whenever the process ends
        before, the older one is still there. Beside it, ``path`` with ``.saving`` at its end is written. Only
        the file's owner may read it.

        The sequences must not be used meanwhile, and all work that writes to them must have been submitted.
        Others may be. Raises InvalidArgument for bad arguments, and where somebody else just saves to
        ``path``; Closed for a closed sequence; OutOfPages where there is no memory to bring one back; OSError
        where the file cannot be written. Then the older file is untouched."""
        return save(self, path, sequences, model)

    @classmethod
    def restore(
        cls, path: str | os.PathLike[str], *, model: str = "", **options: Any
    ) -> tuple[KVCache, dict[str, Sequence]]:
        """Makes a cache from what `save` has written, and returns it with its sequences by their names.
        ``options`` are those of `KVCache`: a pool or a budget, say, and another layout or page size than
        before, if you like. What the file tells (layers, heads, dtype, windows) need not be said; whatever is
        said must agree. ``max_tokens`` and ``max_sequences`` are as before unless they are said.

        What was parked is parked again where the pool has tiers; else it is open, and on the device. Tokens
        that were found (``KVCache.open(tokens=)``) are found again, and where sequences began with the same
        they share memory again.

        Raises InvalidArgument, which says why, for a file that is none, is damaged or incomplete, or was
        written for another model or by another version of vmm, and where the cache is too small; OutOfPages
        where there is not enough memory; OSError where the file cannot be read. Then nothing was made."""
        return restore(cls, path, model, options)

    def close(self) -> None:
        """Gives all memory back when the work on it is over, and closes the pool if it was made with
        ``budget``. Ends the epochs of streams that no other cache steps. Sequences and views must not be used
        any more. A second call does nothing."""
        if self._opened is not None:
            torch_stream(self.pool)
            self._opened, self._leases, self._views = None, [], []
            if self._owns_pool:
                self.pool.close()

    @property
    def _engine(self) -> _core.KvCache:
        if self._opened is None:
            raise Closed("this cache is closed")
        return self._opened

    def _open_views(self) -> list[tuple[torch.Tensor, torch.Tensor]]:
        if not self._views:
            raise Closed("this cache is closed")
        return self._views

    def _stream(self, stream: Any) -> int:
        current = torch_stream(self.pool)
        return current if stream is None else handle_of(stream)
