"""KVTensor: a tensor of the largest shape it may ever need, backed only where it is touched."""

from __future__ import annotations

import math
from collections.abc import Callable
from types import TracebackType
from typing import Any, Self

import torch
from torch.utils._pytree import tree_flatten

from vmm.errors import InvalidArgument
from vmm.kv_tensor import indexing, operations
from vmm.kv_tensor.memory import DTYPES, KVMemory, rebuild_memory
from vmm.pool import Pool, default_pool
from vmm.stream import handle_of
from vmm.units import format_bytes

_LARGEST_BYTES = 2**47  # what user space can address


class KVTensor(torch.Tensor):
    """``KVTensor(*shape)`` in place of ``torch.empty(*shape)``: same shape, strides and fixed ``data_ptr()``,
    but memory only where it was touched, zeros elsewhere.

    ``grow_dim`` is the dimension of tokens; the dimensions before it are rows, those after it the record of a
    token. ``pool`` holds the physical memory (default: ``vmm.default_pool()``), ``page_bytes`` is the unit
    of mapping (default: what the pool's driver is best at; a power of two).

    An index that ends somewhere on ``grow_dim`` (``t[:b, s:e]``, ``t[b, :n]``, ``narrow``, ``select``) maps
    that part and returns a plain tensor over it. Other views stay KVTensors and map nothing. Every other
    operation maps what it uses, or raises OutOfPages. docs/kvtensor.md has the rule in full.

    Raises InvalidArgument, naming the argument, and OutOfPages when the address space is used up.
    Thread-safety: every method is safe from any thread, different tensors and the same one; tokens that one
    thread releases or truncates must not be in use by another, except through slices taken before.
    """

    _memory: KVMemory
    _raw: torch.Tensor  # this very view of the memory, as a plain tensor: never handed out

    def __new__(
        cls,
        *shape: int | tuple[int, ...],
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
        grow_dim: int = 1,
        page_bytes: int | None = None,
        pool: Pool | None = None,
    ) -> Self:
        dtype = torch.get_default_dtype() if dtype is None else dtype
        if dtype not in DTYPES:
            raise InvalidArgument(f"dtype is {dtype!r}; expected a torch.dtype that DLPack knows")
        device = torch.device(torch.get_default_device() if device is None else device)
        if device.type != "cpu":
            raise InvalidArgument(f"device is {device}; expected 'cpu', the only one there is yet")
        sizes = _checked_shape(shape, dtype)
        if not isinstance(grow_dim, int) or not -len(sizes) <= grow_dim < len(sizes):
            raise InvalidArgument(
                f"grow_dim is {grow_dim!r}; expected one of the {len(sizes)} dimensions of shape {sizes}"
            )
        pool = default_pool() if pool is None else pool
        page_bytes = pool.default_page_bytes if page_bytes is None else page_bytes
        if not isinstance(page_bytes, int) or not 0 < page_bytes < 2**40:
            raise InvalidArgument(f"page_bytes is {page_bytes!r}; expected a power of two")
        return cls._over(KVMemory(sizes, dtype, grow_dim % len(sizes), page_bytes, pool))

    def __init__(self, *shape: Any, **options: Any) -> None: ...  # torch.Tensor's refuses keywords

    @classmethod
    def _over(cls, memory: KVMemory, raw: torch.Tensor | None = None) -> Self:
        raw = memory.raw if raw is None else raw
        with operations.native():
            made = raw.as_subclass(cls)
        made._memory = memory
        made._raw = raw
        return made

    # Growing and shrinking.

    @property
    def length(self) -> int:
        """Tokens up to the last one written through this tensor, in any row: where ``append`` goes on."""
        return self._memory.length

    @property
    def mapped_bytes(self) -> int:
        """Physical memory now mapped for the whole tensor, look-ahead included."""
        return self._memory.rows.mapped_bytes

    def append(self, x: torch.Tensor) -> None:
        """Writes ``x``, shaped as this tensor but for its tokens, at ``length`` in every row, and raises
        ``length``. Raises InvalidArgument for another shape, dtype or device, or past the end; OutOfPages;
        Closed. Then nothing has changed. Appends from several threads do not overlap."""
        memory = self._whole_memory("append")
        dim = memory.grow_dim
        if not isinstance(x, torch.Tensor) or x.dtype != memory.dtype or x.device != memory.raw.device:
            raise InvalidArgument(f"x is {_kind_of(x)}; expected a tensor of {memory.dtype} on the CPU")
        expected = (*memory.shape[:dim], x.shape[dim] if x.dim() > dim else -1, *memory.shape[dim + 1 :])
        if x.shape != expected:
            raise InvalidArgument(
                f"x has shape {tuple(x.shape)}; expected {memory.shape}, but any number of tokens in"
                f" dimension {dim}"
            )
        with memory.lock:
            start, end = memory.length, memory.length + x.shape[dim]
            if end > memory.tokens:
                raise InvalidArgument(f"x has {x.shape[dim]} tokens; only {memory.tokens - start} more fit")
            target = memory.raw.narrow(dim, start, end - start)
            memory.touch(target)
            if memory.tracks_gradients or (x.requires_grad and torch.is_grad_enabled()):
                self[(slice(None),) * dim + (slice(start, end),)] = x
            else:
                target.copy_(x)
            memory.length = end

    def reserve(self, n: int) -> None:
        """Maps tokens [0, n) of every row, so that writing them can neither stall nor run out of memory.
        Raises InvalidArgument or OutOfPages."""
        memory = self._whole_memory("reserve")
        memory.rows.reserve(_token_count("n", n, memory.tokens))

    def truncate(self, n: int, stream: Any = None) -> None:
        """Forgets tokens from ``n`` on, in every row, and lowers ``length`` to ``n``; see ``release``."""
        memory = self._whole_memory("truncate")
        _token_count("n", n, memory.tokens)
        with memory.lock:
            self.release(n, memory.tokens, stream)
            memory.length = min(memory.length, n)

    def release(self, start: int, end: int, stream: Any = None) -> None:
        """Ends the use of tokens [start, end) in every row. Pages that hold no other token in use go back to
        the pool once no slice over them lives and the work that may touch them is over: what was on
        ``stream`` until now (a vmm.Stream, a CUDA stream, or its handle), and the pool's open epochs. Until
        they are written again, the tokens read as what they were or as zeros. Raises InvalidArgument."""
        memory = self._whole_memory("release")
        _token_count("start", start, memory.tokens)
        _token_count("end", end, memory.tokens)
        if stream is not None:
            memory.pool._core.mark(handle_of(stream))
        with memory.lock:
            memory.rows.release(start, end)

    def close(self, stream: Any = None) -> None:
        """Gives all memory back, as ``release`` does. Slices taken before stay valid; everything else raises
        Closed. Closing twice does nothing."""
        memory = self._memory
        if memory.rows.ended:
            return
        if stream is not None:
            memory.pool._core.mark(handle_of(stream))
        with memory.lock:
            memory.rows.end()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # Indexing.

    def __getitem__(self, index: Any) -> Any:
        memory = self._memory
        whole = self._raw is memory.raw
        if whole and indexing.is_simple(index, memory.grow_dim) and not memory.tracks_gradients:
            return memory.plain(memory.raw[index])
        if not indexing.is_basic(index):
            index = indexing.normalized(index)
            if not indexing.is_basic(index):
                return self._gather(index)
        entries = indexing.entries_by_dimension(index, self._raw.dim())
        return self._bounded(
            lambda base: base[index], [dim for dim, entry in entries if indexing.is_bound(entry)]
        )

    def __setitem__(self, index: Any, value: Any) -> None:
        memory = self._memory
        if isinstance(value, KVTensor):
            value = value._as_consumed(False)
        gradients = isinstance(value, torch.Tensor) and value.requires_grad and torch.is_grad_enabled()
        if not indexing.is_basic(index):
            index = indexing.normalized(index)
            if not indexing.is_basic(index):
                return self._scatter(index, value, gradients)
        region = self._raw[index]
        _require_fitting(value, region)
        with memory.lock:
            memory.touch(region)
            if gradients or memory.tracks_gradients:
                with operations.native():
                    torch.Tensor.__setitem__(self, index, value)
            elif isinstance(value, torch.Tensor) and value.dim() <= region.dim():
                region.copy_(value)
            else:
                region[...] = value
            self._note_written(region, gradients)
        return None

    def _bounded(self, view: Callable[[torch.Tensor], torch.Tensor], dims: list[int]) -> torch.Tensor:
        """The view; mapped and plain if one of ``dims``, where it ends somewhere, counts tokens."""
        memory = self._memory
        region = view(self._raw)
        if not any(map(self._counts_tokens, dims)):
            memory.require_open()
            return self._wrap(region)
        if not memory.tracks_gradients:
            return memory.plain(region)
        memory.touch(region)
        with operations.native():
            return view(self)

    def _counts_tokens(self, dim: int) -> bool:
        memory, raw = self._memory, self._raw
        if raw is memory.raw:
            return dim % raw.dim() == memory.grow_dim
        stride = raw.stride(dim)
        return stride < memory.row and stride * (raw.shape[dim] - 1) >= memory.record

    def _gather(self, index: Any) -> torch.Tensor:
        selection = indexing.advanced(self._raw, index)
        if selection is None:
            return self._as_consumed(False)[index]
        made: torch.Tensor = self._on_selection(selection, lambda base: base[index], False, ())
        return made

    def _scatter(self, index: Any, value: Any, gradients: bool) -> None:
        selection = indexing.advanced(self._raw, index)
        if selection is None:
            self._as_consumed(gradients)[index] = value
            self._note_written(self._raw, gradients)
        else:
            self._on_selection(selection, lambda base: base.__setitem__(index, value), True, value)

    def _on_selection(
        self, selection: indexing.Selection, work: Callable[[Any], Any], in_place: bool, values: Any
    ) -> Any:
        """``work`` on this tensor, of which it touches the selection only; it must not return a view."""
        memory = self._memory
        gradients = torch.is_grad_enabled() and any(
            isinstance(leaf, torch.Tensor) and leaf.requires_grad for leaf in tree_flatten(values)[0]
        )
        with memory.lock:
            memory.touch_each(selection.offsets, selection.region)
            with operations.native():
                result = work(self if gradients or memory.tracks_gradients else self._raw)
        if not in_place:
            return result
        for offset in selection.offsets.tolist():
            self._note_written(
                memory.raw.as_strided(selection.region.shape, selection.region.stride(), offset), gradients
            )
        return self

    # What operations.py asks of us.

    def _is_whole(self) -> bool:
        return self._raw is self._memory.raw

    def _whole_memory(self, method: str) -> KVMemory:
        if not self._is_whole():
            raise InvalidArgument(f"{method}: expected the KVTensor itself, this is a view of it")
        self._memory.require_open()
        return self._memory

    def _same_kind(self, other: KVTensor) -> bool:
        return self._memory.shape == other._memory.shape and self._memory.dtype == other._memory.dtype

    def _viewable(self) -> torch.Tensor:
        return self if self._memory.tracks_gradients else self._raw

    def _wrap(self, view: torch.Tensor) -> Self:
        return type(self)._over(self._memory, view)

    def _as_consumed(self, for_gradients: bool) -> torch.Tensor:
        """This tensor, mapped, as one that torch may do anything with."""
        memory = self._memory
        if not (for_gradients or memory.tracks_gradients):
            return memory.plain(self._raw)
        memory.touch(self._raw)
        with operations.native():
            return self.as_subclass(torch.Tensor)

    def _note_written(self, region: torch.Tensor, gradients: bool) -> None:
        self._memory.note_written(region)
        if gradients:
            self._memory.tracks_gradients = True

    @classmethod
    def __torch_function__(
        cls, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        return operations.call(func, args, kwargs or {})

    # Copies and text.

    def __copy__(self) -> Self:
        return self._wrap(self._raw)

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        from copy import deepcopy

        with operations.native():
            leaf, requires_grad = self.is_leaf, self.requires_grad
        if not leaf:
            raise RuntimeError("only KVTensors created explicitly by the user can be copied deeply")
        if id(self) in memo:
            return memo[id(self)]  # type: ignore[no-any-return]
        made = rebuild_tensor(deepcopy(self._memory, memo), *_geometry(self._raw), requires_grad)
        memo[id(self)] = made
        return made  # type: ignore[return-value]

    def __reduce_ex__(self, protocol: Any) -> Any:
        with operations.native():
            requires_grad = self.requires_grad
        return rebuild_tensor, (self._memory, *_geometry(self._raw), requires_grad)

    def __repr__(self, **_: Any) -> str:  # type: ignore[override]
        memory = self._memory
        view = "" if self._is_whole() else " view of"
        state = "closed" if memory.rows.ended else f"length {memory.length}"
        if not memory.rows.ended:
            state += f", {format_bytes(self.mapped_bytes)} mapped"
        return f"<{type(self).__name__}{view} {tuple(self._raw.shape)} {memory.dtype}, {state}>"

    def __format__(self, spec: str) -> str:
        return format(repr(self), spec)


def rebuild_tensor(
    memory: KVMemory, offset: int, sizes: tuple[int, ...], strides: tuple[int, ...], requires_grad: bool
) -> KVTensor:
    """For pickle and deepcopy."""
    if sizes == memory.shape and not offset:
        made = KVTensor._over(memory)
    else:
        made = KVTensor._over(memory, memory.raw.as_strided(sizes, strides, offset))
    if requires_grad:
        made.requires_grad_()
    return made


def _geometry(raw: torch.Tensor) -> tuple[int, tuple[int, ...], tuple[int, ...]]:
    return int(raw.storage_offset()), tuple(raw.shape), raw.stride()


def _checked_shape(shape: tuple[Any, ...], dtype: torch.dtype) -> tuple[int, ...]:
    sizes = tuple(shape[0]) if len(shape) == 1 and isinstance(shape[0], (tuple, list)) else shape
    if not sizes or not all(isinstance(size, int) and size > 0 for size in sizes):
        raise InvalidArgument(f"shape is {sizes!r}; expected at least one dimension, each a positive integer")
    size_bytes = math.prod(sizes) * dtype.itemsize
    if size_bytes > _LARGEST_BYTES:
        raise InvalidArgument(
            f"shape is {sizes!r}: {format_bytes(size_bytes)} are more than can be addressed"
        )
    return sizes


def _token_count(argument: str, value: Any, most: int) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= most:
        raise InvalidArgument(f"{argument} is {value!r}; expected 0 to {most} tokens")
    return value


def _kind_of(x: Any) -> str:
    return f"a tensor of {x.dtype} on {x.device}" if isinstance(x, torch.Tensor) else f"a {type(x).__name__}"


def _require_fitting(value: Any, region: torch.Tensor) -> None:
    """Raises torch's own error, before anything is mapped, when ``value`` cannot be written to ``region``."""
    if isinstance(value, (int, float)):
        return
    if isinstance(value, torch.Tensor):
        if value.shape == region.shape:
            return
        sizes = value.shape[max(0, value.dim() - region.dim()) :]
        tail = region.shape[region.dim() - len(sizes) :]
        if all(a in (1, b) for a, b in zip(sizes, tail, strict=True)) and value.numel() == sizes.numel():
            return
    torch.empty(region.shape, dtype=region.dtype, device="meta")[...] = value


torch.serialization.add_safe_globals([rebuild_tensor, rebuild_memory])
