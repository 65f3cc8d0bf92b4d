"""KVCache: K and V of many sequences, each in a slot that is contiguous, has a fixed address, and grows."""

from __future__ import annotations

from collections.abc import Sequence as Ordered
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

import torch
from torch._C import _from_dlpack

from vmm import _core
from vmm.errors import Closed, InvalidArgument
from vmm.kv_cache.records import (
    LayerShape,
    LayoutName,
    Records,
    Where,
    head_major,
    token_major,
    tokens_of_extent,
)
from vmm.pool import Pool, checked_pool, default_pool
from vmm.stream import handle_of, release_after, torch_stream

# DLPack's type codes: https://dmlc.github.io/dlpack/latest/c_api.html
_TYPE_CODES = {torch.float64: 2, torch.float32: 2, torch.float16: 2, torch.bfloat16: 4}


@dataclass(frozen=True)
class CacheStats:
    """One cache at one moment; the pool's own are ``cache.pool.stats()``."""

    sequences: int  #: open
    live_bytes: int  #: of the K and V of tokens in open sequences
    running_bytes: int  #: of the pages that open sequences need, or will soon
    mapped_bytes: int  #: live, the rest of their pages, what was mapped ahead, and what closed ones left
    horizon: int  #: iterations ahead that pages are asked for, now
    layout: LayoutName
    bytes_per_sequence: int  #: of bookkeeping


@dataclass(frozen=True)
class Batch:
    """Sequences as kernels want them, int32, on the CPU."""

    slots: torch.Tensor  #: [n]
    lengths: torch.Tensor  #: [n]; FlashAttention's seqused_k
    starts: torch.Tensor  #: [n + 1], in tokens from the cache's start; FlashAttention's cu_seqlens_k


class Sequence:
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
        """K and V of this sequence so far: ``[length, heads, dim]`` each."""
        k, v = self.cache.kv(layer)
        slot, length = self.slot, self.length
        return k[slot, :length], v[slot, :length]

    def announce(self, tokens: int) -> None:
        """Tokens up to ``tokens`` will be needed soon: the next chunk of a prompt. Waits for nothing."""
        self.cache._engine.announce(self.slot, _checked("tokens", tokens, 0, self.cache.max_tokens))

    def truncate(self, n: int) -> None:
        """Forgets tokens from ``n`` on: what speculation got wrong. Their memory stays mapped until it is
        short. Raises InvalidArgument."""
        self.cache._engine.truncate(self.slot, _checked("n", n, 0, self.cache.max_tokens))

    def close(self, stream: Any = None) -> None:
        """Frees the slot. The work of open and unfinished epochs, and what is on ``stream`` now, may still
        read it. Closing twice does nothing."""
        if self._slot is None:
            return
        if self.cache._opened is not None:
            release_after(self.cache.pool, stream)
            torch_stream(self.cache.pool)
            self.cache._opened.close(self._slot)
        self._slot = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class KVCache:
    """The K and V of up to ``max_sequences`` sequences of up to ``max_tokens`` tokens in ``layers`` layers.

    ``kv_heads`` and ``head_dim`` are numbers, or one for each layer. Memory is taken from ``pool``, or a pool
    of its own with ``budget``, or the device's default pool; only what running sequences need is mapped, in
    pages of ``page_bytes``. ``layout`` is ``"token-major"`` (``layers_per_extent`` layers side by side in a
    token's record; default on a GPU: all) or ``"head-major"`` (faster attention on CPUs; the default there
    while the process has enough mappings for it). ``tail_tokens`` past each length stay mapped, and finite,
    for kernels that load whole tiles (256 for FlashAttention 3 and 4). ``tokens_per_step`` is what a decoding
    sequence grows by: 1, or more with speculation.

    Raises InvalidArgument, naming the argument. Every method is safe from any thread.
    """

    def __init__(
        self,
        layers: int,
        kv_heads: int | Ordered[int],
        head_dim: int | Ordered[int],
        dtype: torch.dtype = torch.bfloat16,
        *,
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
    ) -> None:
        shapes = _shapes(layers, kv_heads, head_dim)
        if not isinstance(dtype, torch.dtype) or dtype not in _TYPE_CODES:
            raise InvalidArgument(f"dtype is {dtype!r}; expected one of {', '.join(map(str, _TYPE_CODES))}")
        self.dtype = dtype
        self.max_tokens = _checked("max_tokens", max_tokens, 1, 2**31 - 1)
        self.max_sequences = _checked("max_sequences", max_sequences, 1, 2**20)
        self._tail = _checked("tail_tokens", tail_tokens, 0, 2**16)
        _checked("tokens_per_step", tokens_per_step, 1, 2**16)
        self._owns_pool = pool is None and budget is not None
        self.pool = _pool(pool, budget, device)
        self._page_bytes = _page_bytes(self.pool, page_bytes)
        self._records = _records(shapes, layout, layers_per_extent, self.pool, self.max_sequences)
        self._leases = [self._reserve(part) for part in range(len(self._records.parts))]
        self._opened: _core.KvCache | None = _core.KvCache(
            self.pool._core,
            [
                (lease, part.extents, part.record * dtype.itemsize)
                for lease, part in zip(self._leases, self._records.parts, strict=True)
            ],
            self.max_sequences,
            tail=self._tail,
            tokens_per_step=tokens_per_step,
            max_tokens=self.max_tokens,
        )
        self._views = [(self._view(k), self._view(v)) for k, v in self._records.layers]

    # Once per iteration.

    def step(self, slots: Any, lengths: Any, stream: Any = None) -> None:
        """The next iteration: after it, the sequences in ``slots`` have ``lengths`` tokens. Both are int32
        arrays of one length on the CPU (torch, NumPy, array.array). Maps what is missing, which the pager
        mostly did before; closes ``stream``'s last epoch and opens the next (default: torch's current
        stream).

        Raises InvalidArgument for a slot that is not open or is named twice, and for a length that is less
        than before or more than ``max_tokens``; OutOfPages, whose ``fitting`` are the slots that could have
        had what they need. Then nothing has changed.
        """
        self._engine.step(*_int32("slots", slots), *_int32("lengths", lengths), self._stream(stream))

    def end(self, stream: Any = None) -> None:
        """Closes ``stream``'s epoch without opening the next: the engine goes idle."""
        self._engine.end(self._stream(stream))

    def batch(self, sequences: Ordered[Sequence]) -> Batch:
        """For kernels that take all slots as one tensor: ``kv(layer)[0].flatten(0, 1)``, token-major."""
        slots = torch.tensor([sequence.slot for sequence in sequences], dtype=torch.int32)
        lengths = torch.tensor([sequence.length for sequence in sequences], dtype=torch.int32)
        starts = torch.empty(len(sequences) + 1, dtype=torch.int32)
        torch.mul(slots, self.tokens_per_slot, out=starts[:-1])
        starts[-1] = self.max_sequences * self.tokens_per_slot
        return Batch(slots, lengths, starts)

    # Sequences.

    def open(self, prompt_tokens: int = 0, stream: Any = None) -> Sequence:
        """A new sequence, in the free slot that fits best; what its prompt needs is mapped while it waits.
        ``stream``: where its first step will be. Raises InvalidArgument when all slots are taken."""
        _checked("prompt_tokens", prompt_tokens, 0, self.max_tokens)
        return Sequence(self, self._engine.open(prompt_tokens, self._stream(stream)))

    def kv(self, layer: int) -> tuple[torch.Tensor, torch.Tensor]:
        """K and V of all slots: ``[max_sequences, tokens_per_slot, heads, dim]`` each, the last dimension
        contiguous, at addresses that never change. Only tokens below a sequence's length, and ``tail_tokens``
        more, may be touched: the rest is not mapped."""
        views = self._open_views()
        return views[_checked("layer", layer, 0, len(views) - 1)]

    @property
    def tokens_per_slot(self) -> int:
        """From one slot to the next, in tokens: ``max_tokens`` and the tail, in whole pages."""
        return int(self._open_views()[0][0].shape[1])

    def stats(self) -> CacheStats:
        per_token = sum(2 * k.heads * k.dim for k, _ in self._records.layers) * self.dtype.itemsize
        return CacheStats(
            sequences=self._engine.open_slots,
            live_bytes=self._engine.live_tokens * per_token,
            running_bytes=self._engine.held_bytes,
            mapped_bytes=sum(lease.mapped_bytes for lease in self._leases),
            horizon=self._engine.horizon,
            layout=self._records.name,
            bytes_per_sequence=_core.KvCache.bytes_per_slot,
        )

    def close(self) -> None:
        """Gives all memory back when the work on it is over; with ``budget``, closes the pool. Sequences and
        views must not be used any more. Twice is once."""
        if self._opened is not None:
            torch_stream(self.pool)
            self._opened, self._leases, self._views = None, [], []
            if self._owns_pool:
                self.pool.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

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

    def _tokens(self) -> int:
        """Of a slot, the same in every part, so that one set of starts is right for all layers."""
        return max(
            tokens_of_extent(part, self.max_tokens + self._tail, self.dtype.itemsize, self._page_bytes)
            for part in self._records.parts
        )  # each a multiple of a power of two, and the largest of all

    def _reserve(self, part: int) -> _core.Lease:
        described, tokens = self._records.parts[part], self._tokens()
        if self.max_sequences * tokens >= 2**31:
            raise InvalidArgument(
                f"max_sequences x max_tokens: {self.max_sequences} slots of {tokens} tokens are 2^31 or more,"
                " which int32 offsets cannot count"
            )
        return self.pool._core.reserve(
            page_bytes=self._page_bytes,
            extent_bytes=tokens * described.record * self.dtype.itemsize,
            extents=self.max_sequences * described.extents,
            tenant=1 + list(_TYPE_CODES).index(self.dtype),  # else a tail might not be finite in this type
            stream=torch_stream(self.pool),
        )

    def _view(self, where: Where) -> torch.Tensor:
        part, tokens = self._records.parts[where.part], self._tokens()
        extent = tokens * part.record
        strides = (
            (extent, part.record, where.dim, 1)
            if where.inside
            else (extent * part.extents, part.record, extent, 1)
        )
        capsule = self._leases[where.part].dlpack(
            offset_bytes=where.offset * self.dtype.itemsize,
            shape=(self.max_sequences, tokens, where.heads, where.dim),
            strides=strides,
            type_code=_TYPE_CODES[self.dtype],
            type_bits=8 * self.dtype.itemsize,
        )
        with torch.inference_mode(False):  # or only inference mode could ever write into it
            view: torch.Tensor = _from_dlpack(capsule)
        return view


def _checked(argument: str, value: Any, least: int, most: int) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
        raise InvalidArgument(f"{argument} is {value!r}; expected {least} to {most}")
    return value


def _shapes(layers: Any, kv_heads: Any, head_dim: Any) -> list[LayerShape]:
    _checked("layers", layers, 1, 2**16)
    each: dict[str, list[int]] = {}
    for argument, given in (("kv_heads", kv_heads), ("head_dim", head_dim)):
        if not isinstance(given, int | Ordered):
            raise InvalidArgument(f"{argument} is {given!r}; expected a number, or one for each layer")
        numbers = [given] * layers if isinstance(given, int) else list(given)
        if len(numbers) != layers:
            raise InvalidArgument(f"{argument} has {len(numbers)} numbers; expected one, or {layers}")
        each[argument] = [_checked(argument, number, 1, 2**16) for number in numbers]
    return [LayerShape(*pair) for pair in zip(each["kv_heads"], each["head_dim"], strict=True)]


def _pool(pool: Any, budget: int | str | None, device: Any) -> Pool:
    if pool is None:
        device = "cpu" if device is None else device
        return default_pool(device) if budget is None else Pool(budget, device=device)
    if budget is not None:
        raise InvalidArgument("budget and pool: expected at most one of them")
    return checked_pool(pool, device)


def _page_bytes(pool: Pool, page_bytes: Any) -> int:
    granularity = pool._core.granularity
    if page_bytes is None:
        return pool.default_page_bytes
    if not isinstance(page_bytes, int) or page_bytes < granularity or page_bytes & (page_bytes - 1):
        raise InvalidArgument(
            f"page_bytes is {page_bytes!r}; expected a power of two of at least {granularity}"
        )
    return page_bytes


def _records(
    shapes: list[LayerShape], layout: Any, layers_per_extent: Any, pool: Pool, max_sequences: int
) -> Records:
    if layout is not None and layout not in ("token-major", "head-major"):
        raise InvalidArgument(f"layout is {layout!r}; expected 'token-major' or 'head-major'")
    if layers_per_extent is not None:
        _checked("layers_per_extent", layers_per_extent, 1, len(shapes))
        if layout == "head-major":
            raise InvalidArgument("layers_per_extent: of the layout 'token-major' only")
    limit = pool._core.max_mappings // 2  # each extent costs two: what is mapped, and the gap after it

    def fits(records: Records) -> bool:
        return limit == 0 or 2 * max_sequences * sum(part.extents for part in records.parts) <= limit

    by_heads = head_major(shapes)
    if layout == "head-major" or (layout is None and layers_per_extent is None and not pool._core.gpu):
        if fits(by_heads):
            return by_heads
        if layout is not None:
            raise InvalidArgument(_too_many(limit))
    per_extent = layers_per_extent or (len(shapes) if pool._core.gpu else 1)
    records = token_major(shapes, per_extent)
    if not fits(records) and layers_per_extent is None:
        records = token_major(shapes, len(shapes))
    if not fits(records):
        raise InvalidArgument(_too_many(limit))
    return records


def _too_many(limit: int) -> str:
    return (
        f"max_sequences: the slots would use more than {limit} memory mappings, half of what a process may"
        " have; use fewer sequences, or more layers per extent, or raise vm.max_map_count (sysctl)"
    )


def _int32(argument: str, array: Any) -> tuple[int, int]:
    """Where the numbers are, and how many."""
    if not isinstance(array, torch.Tensor):
        array = _as_tensor(argument, array)
    if array.dtype is not torch.int32 or array.dim() != 1 or not array.is_contiguous() or not array.is_cpu:
        raise InvalidArgument(
            f"{argument} is {tuple(array.shape)} of {array.dtype} on {array.device}; expected a contiguous"
            " one-dimensional int32 array on the CPU"
        )
    return array.data_ptr(), array.numel()


def _as_tensor(argument: str, array: Any) -> torch.Tensor:
    try:
        view = memoryview(array)
    except TypeError:
        raise InvalidArgument(f"{argument} is {type(array).__name__}; expected an int32 array") from None
    if view.format != "i" or view.ndim != 1 or not view.contiguous:
        raise InvalidArgument(
            f"{argument} has items of format {view.format!r}; expected int32, one dimension"
        )
    return torch.frombuffer(view, dtype=torch.int32) if view.nbytes else torch.empty(0, dtype=torch.int32)
