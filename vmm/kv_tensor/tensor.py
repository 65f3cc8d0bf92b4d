"""KVTensor: a tensor of the largest shape it may ever need, backed only where it is touched."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Self

import torch

from vmm.errors import InvalidArgument
from vmm.kv_tensor import arguments, indexing, operations, selecting
from vmm.kv_tensor.compiling import keep_out_of_graphs
from vmm.kv_tensor.dispatching import dispatched
from vmm.kv_tensor.lifecycle import Lifecycle
from vmm.kv_tensor.memory import KVMemory, marked, rebuild_memory
from vmm.kv_tensor.reshaping import change_in_place, native
from vmm.kv_tensor.selecting import item, set_item
from vmm.pool import Pool
from vmm.tenant import Tenant, pool_for
from vmm.units import format_bytes


class _Missing:
    """Stands on the class for what KVTensor sets on each object that it makes."""

    def __get__(self, instance: Any, owner: type[Any]) -> Any:
        raise InvalidArgument(
            "this KVTensor has no memory: neither as_subclass() nor iterating in torch.compile can make one"
        )


# Sizes, strides, offset and dtype; whether the tensor shows conjugates, and negatives.
_Geometry = tuple[tuple[int, ...], tuple[int, ...], int, torch.dtype, bool, bool]


class KVTensor(Lifecycle, torch.Tensor):
    """A tensor like ``torch.empty(*shape)``, with the same shape, strides and a fixed ``data_ptr()``, but
    with memory only where it was touched, and zeros elsewhere.

    ``grow_dim`` is the dimension of tokens; the dimensions before it are rows, those after it the record of a
    token. ``pool`` holds the physical memory (default: ``vmm.default_pool()``), ``page_bytes`` is the unit
    of mapping (default: what the pool's driver is best at; a power of two). The memory, and that of copies,
    belongs to ``tenant``, if there is one.

    An index that ends somewhere on ``grow_dim`` (``t[:b, s:e]``, ``t[b, :n]``, ``narrow``, ``select``) maps
    that part and returns a plain tensor over it. Other views stay KVTensors and map nothing. Every other
    operation maps what it uses, or raises OutOfPages. docs/kvtensor.md has the rule in full.

    On the device ``"meta"``, or within ``with torch.device("meta")`` where no pool is given, it is what
    ``torch.empty`` makes there: a plain tensor that stays one.

    Making one raises InvalidArgument, which names the argument, and OutOfPages when the address space is used
    up. Every method is safe from any thread, of different tensors and of the same one. But tokens that one
    thread releases or truncates must not be in use by another, except through slices taken before.
    """

    _memory: KVMemory = _Missing()  # type: ignore[assignment]
    # The same view of the memory as a plain tensor, which is never handed out. It is guarded against writers,
    # as this tensor is for torch until autograd records it.
    _raw: torch.Tensor = _Missing()  # type: ignore[assignment]
    _recorded = False

    def __new__(
        cls,
        *shape: int | tuple[int, ...],
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
        grow_dim: int = 1,
        page_bytes: int | None = None,
        pool: Pool | None = None,
        tenant: Tenant | None = None,
    ) -> Self:
        dtype = arguments.checked_dtype(dtype)
        sizes = arguments.checked_shape(shape, dtype)
        grow_dim = arguments.checked_grow_dim(grow_dim, sizes)
        device = arguments.tensor_device(device, tenant if pool is None else pool)
        if pool is None and tenant is None and device is not None and device.type == "meta":
            return torch.empty(sizes, dtype=dtype, device="meta")  # type: ignore[return-value]
        pool = pool_for(tenant, pool, device=device)
        page_bytes = arguments.chosen_page_size(page_bytes, pool, sizes, dtype)
        return cls._over(KVMemory(sizes, dtype, grow_dim, page_bytes, pool, tenant=tenant))

    def __init__(self, *shape: Any, **options: Any) -> None: ...  # torch.Tensor's refuses keywords

    @classmethod
    def _over(cls, memory: KVMemory, raw: torch.Tensor | None = None) -> Self:
        raw = memory.guarded if raw is None else raw
        made = raw.as_subclass(cls)
        made._memory = memory
        made._raw = raw
        return made

    # Indexing.

    def __getitem__(self, index: Any) -> Any:
        memory = self._memory
        whole = self._raw is memory.guarded
        if whole and indexing.is_simple(index, memory.grow_dim) and not memory.tracks_gradients:
            return memory.plain(memory.raw[index], of_raw=True)
        if not indexing.is_basic(index):
            index = indexing.normalized(index)
            if not indexing.is_basic(index):
                return selecting.gather(self, index)
        entries = indexing.entries_by_dimension(index, self._raw.dim())
        ends = [dim for dim, entry in entries if indexing.is_bound(entry)]
        return selecting.bounded(self, lambda base: item(base, index), ends)

    def __setitem__(self, index: Any, value: Any) -> None:
        memory = self._memory
        if isinstance(value, KVTensor):
            value = value._as_consumed(False)
        gradients = isinstance(value, torch.Tensor) and value.requires_grad and torch.is_grad_enabled()
        if not indexing.is_basic(index):
            index = indexing.normalized(index)
            if not indexing.is_basic(index):
                return selecting.scatter(self, index, value)
        whole = self._raw is memory.guarded
        region = memory.raw[index] if whole else memory.writable(self._raw[index])
        arguments.require_fitting(value, region)
        with memory.lock:
            memory.touch(region)
            if gradients or memory.tracks_gradients:
                with native():
                    set_item(self._as_recorded(), index, value)
            elif isinstance(value, torch.Tensor) and value.dim() <= region.dim():
                region.copy_(value)
            else:
                region[...] = value
            self._note_written(region, gradients)
        return None

    # What selecting.py and operations.py ask of us.

    def _same_kind(self, other: KVTensor) -> bool:
        return self._memory.shape == other._memory.shape and self._memory.dtype == other._memory.dtype

    def _viewed(self, view: Callable[[torch.Tensor], Any]) -> Any:
        """``view``, which maps nothing, of this tensor; one that autograd records if it records this."""
        with native():
            return view(self._as_recorded() if self._memory.tracks_gradients else self._raw)

    def _as_recorded(self) -> Self:
        """This tensor, which torch may treat as any tensor: what is touched must be mapped."""
        if not self._recorded:
            with native():
                self.data = self._memory.writable(self._raw)
            self._recorded = True
        return self

    def _wrap(self, view: torch.Tensor) -> Self:
        return type(self)._over(self._memory, view)

    def _as_consumed(self, for_gradients: bool) -> torch.Tensor:
        """This tensor, mapped, as one that torch may do anything with."""
        memory = self._memory
        if not (for_gradients or memory.tracks_gradients):
            return memory.plain(self._raw)
        memory.touch(self._raw)
        self._as_recorded()
        with native():
            return super().as_subclass(torch.Tensor)

    def _note_written(
        self, region: torch.Tensor, gradients: bool, offsets: torch.Tensor | None = None
    ) -> None:
        self._memory.note_written(region, offsets)
        if gradients:
            self._memory.track_gradients()

    # torch does not dispatch these two.

    def as_subclass(self, cls: type[Any]) -> Any:
        return self if cls is type(self) else self._as_consumed(False).as_subclass(cls)

    def set_(self, *args: Any, **kwargs: Any) -> Any:
        return change_in_place("set_", torch.Tensor.set_, self, args, kwargs)

    @classmethod
    def __torch_function__(
        cls, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        return operations.call(func, args, kwargs or {})

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        return dispatched(func, args, kwargs or {})

    # Copies and text.

    def __copy__(self) -> Self:
        return self._wrap(self._raw)

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        from copy import deepcopy

        with native():
            leaf, requires_grad = self.is_leaf, self.requires_grad
        if not leaf:
            raise RuntimeError("only KVTensors created explicitly by the user can be copied deeply")
        if id(self) in memo:
            return memo[id(self)]  # type: ignore[no-any-return]
        made = rebuild_tensor(deepcopy(self._memory, memo), _geometry(self._raw), requires_grad)
        memo[id(self)] = made
        return made  # type: ignore[return-value]

    def __reduce_ex__(self, protocol: Any) -> Any:
        with native():
            requires_grad = self.requires_grad
        return rebuild_tensor, (self._memory, _geometry(self._raw), requires_grad)

    def __repr__(self, **_: Any) -> str:  # type: ignore[override]
        memory = self._memory
        if memory.pool._core.in_child:
            return f"<{type(self).__name__} of the parent process>"
        view = "" if self._is_whole() else " view of"
        state = "closed" if memory.rows.ended else f"length {memory.length}"
        if not memory.rows.ended:
            state += f", {format_bytes(self.mapped_bytes)} mapped"
        return f"<{type(self).__name__}{view} {tuple(self._raw.shape)} {memory.dtype}, {state}>"

    def __format__(self, spec: str) -> str:
        return format(repr(self), spec)


def rebuild_tensor(memory: KVMemory, geometry: _Geometry, requires_grad: bool) -> KVTensor:
    """Makes a KVTensor over ``memory``, for pickle and deepcopy."""
    geometry = (*geometry, False, False)[:6]  # files of earlier versions have four
    if geometry == _geometry(memory.guarded):
        made = KVTensor._over(memory)
    else:
        sizes, strides, offset, dtype, conjugate, negative = geometry
        view = memory.guarded.as_strided(sizes, strides, offset).view(dtype)
        made = KVTensor._over(memory, marked(view, conjugate, negative))
    if requires_grad:
        made.requires_grad_()
    return made


def _geometry(raw: torch.Tensor) -> _Geometry:
    return tuple(raw.shape), raw.stride(), int(raw.storage_offset()), raw.dtype, raw.is_conj(), raw.is_neg()


keep_out_of_graphs(Lifecycle)
keep_out_of_graphs(KVTensor)
torch.serialization.add_safe_globals([rebuild_tensor, rebuild_memory])
