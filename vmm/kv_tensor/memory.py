"""The memory behind KVTensors: one contiguous range of addresses, backed by pages where it was touched."""

from __future__ import annotations

import math
import os
import threading
import weakref
from collections.abc import Callable
from typing import Any

import torch

from vmm import _core
from vmm.default_pools import default_pool
from vmm.dlpack import consumed, type_of
from vmm.errors import Closed, Forked
from vmm.kv_tensor.guarding import refuse_storage, refuse_writers
from vmm.pool import Pool
from vmm.stream import torch_stream
from vmm.tenant import Tenant, owner_id

_MOST_AT_ONCE = 2**20  # elements


class KVMemory:
    """What a KVTensor and its views share. ``shape`` and ``grow_dim`` are those of the whole tensor.

    Safe from any thread: ``lock`` is held by whatever writes through ``raw`` or releases.
    """

    def __init__(
        self,
        shape: tuple[int, ...],
        dtype: torch.dtype,
        grow_dim: int,
        page_bytes: int,
        pool: Pool,
        *,
        tenant: Tenant | None = None,
    ) -> None:
        self.shape, self.dtype, self.grow_dim = shape, dtype, grow_dim
        self.pool, self.tenant = pool, tenant
        self.tokens = shape[grow_dim]
        self.record = math.prod(shape[grow_dim + 1 :])  # elements of a token in a row
        self.row = self.tokens * self.record
        self.rows = _core.Rows(
            pool._core,
            rows=math.prod(shape[:grow_dim]),
            tokens=self.tokens,
            record_bytes=self.record * dtype.itemsize,
            page_bytes=page_bytes,
            tenant=owner_id(tenant),
            **type_of(dtype),
        )
        self.lock = threading.RLock()
        self.length = 0  # tokens up to the last one written through the tensor, in any row
        self.tracks_gradients = False  # then indexing must be what autograd can see
        _memories.add(self)
        strides = tuple(math.prod(shape[i + 1 :]) for i in range(len(shape)))
        # A tensor that is made in inference mode could be written only in that mode.
        with torch.inference_mode(False):
            self.raw = consumed(self.rows.base(shape, strides), dtype)  # all of it, mapped or not
            # The same again, for torch to show. A change of either counts as a change of both.
            self.guarded = self.raw.detach()
            self.guarded.data = consumed(self.rows.base(shape, strides), dtype)
        self.address = self.raw.data_ptr()
        refuse_storage(self.raw)
        refuse_storage(self.guarded)
        refuse_writers(self.guarded)

    def require_open(self) -> None:
        if self.pool._core.in_child:
            raise Forked(
                "this KVTensor was made before fork() and cannot be used in the child: make a new one there,"
                " or start workers with 'spawn'"
            )
        if self.rows.ended:
            raise Closed("this KVTensor is closed")

    def touch(self, region: torch.Tensor) -> None:
        """Maps what ``region``, a view of ``raw``, covers. Raises OutOfPages or Closed."""
        torch_stream(self.pool)
        self.rows.touch(int(region.storage_offset()), region.shape, region.stride())

    def touch_each(self, offsets: torch.Tensor, region: torch.Tensor) -> None:
        """Maps what ``region`` would cover if it began at each of ``offsets`` (int64, in elements)."""
        torch_stream(self.pool)
        offsets = offsets.to("cpu", torch.int64).contiguous()
        self.rows.touch_each(offsets.data_ptr(), offsets.numel(), region.shape, region.stride())

    def plain(self, region: torch.Tensor, *, of_raw: bool = False) -> torch.Tensor:
        """``region``, a view of ``guarded`` (or, which is faster, an index ``of_raw``), as a tensor whose own
        storage ends where it does. It is mapped, and safe from release() while it lives. Raises OutOfPages or
        Closed."""
        if region.numel() == 0:  # it may begin beyond the end
            self.require_open()
            return region.new_empty_strided(region.shape, region.stride())
        torch_stream(self.pool)
        capsule, holes = self.rows.slice(int(region.storage_offset()), region.shape, region.stride())
        tensor = consumed(capsule, region.dtype)
        if not of_raw:
            tensor = marked(tensor, region.is_conj(), region.is_neg())
        if not torch.is_inference_mode_enabled():
            # Writes through the KVTensor count as changes of what autograd has saved of its slices.
            counted = region.detach()
            counted.data = tensor
            tensor = counted
        if holes:
            _copy_without_holes(tensor)
        return tensor

    def writable(self, region: torch.Tensor) -> torch.Tensor:
        """``region``, a view of ``guarded``, as one of ``raw``: what is touched must be mapped."""
        if region is self.guarded:
            return self.raw
        same = self.raw.as_strided(region.shape, region.stride(), region.storage_offset())
        same = same if same.dtype == region.dtype else same.view(region.dtype)
        return marked(same, region.is_conj(), region.is_neg())

    def note_written(self, region: torch.Tensor, offsets: torch.Tensor | None = None) -> None:
        """Raises ``length`` to the last token that ``region`` covers, or would if it began at ``offsets``."""
        if region.numel() == 0 or (offsets is not None and offsets.numel() == 0):
            return
        first = region.storage_offset() % self.row if offsets is None else int((offsets % self.row).max())
        # The place of the last element within its row.
        in_row = first + sum(
            (size - 1) * (stride % self.row)
            for size, stride in zip(region.shape, region.stride(), strict=True)
        )
        token = min(in_row // self.record + 1, self.tokens)  # a view that runs on into the next row wrote all
        with self.lock:
            self.length = max(self.length, token)

    def track_gradients(self) -> None:
        """Makes slices views that autograd records, from here on. They share one storage, and what they show
        lives as long as that storage."""
        if not self.tracks_gradients:
            self.tracks_gradients = True
            self._outlived_by_storage(self.rows)

    def _outlived_by_storage(self, *kept: Any) -> None:
        vars(self.raw.untyped_storage()).setdefault("vmm_keeps", []).extend(kept)

    def release(self, start: int, end: int) -> None:
        torch_stream(self.pool)
        with self.lock:
            self._pin_for_autograd()
            self.rows.release(start, end)

    def end(self) -> None:
        torch_stream(self.pool)
        with self.lock:
            self._pin_for_autograd()
            self.rows.end()

    def _pin_for_autograd(self) -> None:
        if self.tracks_gradients:
            flat = self.raw.view(-1)
            self._outlived_by_storage(*(self.plain(flat[span]) for span in self.in_use()))

    def in_use(self) -> list[slice]:
        """The spans of elements of the flat tensor that are mapped and in use."""
        size = self.dtype.itemsize
        return [slice(start // size, (start + count) // size) for start, count in self.rows.in_use()]

    def zero(self, region: torch.Tensor) -> bool:
        """Zeroes what is mapped of ``region``. Where its elements overlap it does nothing and returns
        False."""
        offset = int(region.storage_offset())
        if self.rows.zero_mapped(offset, region.shape, region.stride(), torch_stream(self.pool)):
            return True
        steps = sorted(
            (stride, size) for size, stride in zip(region.shape, region.stride(), strict=True) if size > 1
        )
        extent = 1
        for stride, size in steps:
            if stride < extent:
                return False
            extent += stride * (size - 1)
        flat = self.raw.view(-1)
        for span in self.in_use():
            for at in range(span.start, span.stop, _MOST_AT_ONCE):
                piece = flat[at : min(at + _MOST_AT_ONCE, span.stop)]
                rest = torch.arange(at - offset, at - offset + piece.numel(), device=flat.device)
                within = rest >= 0
                for stride, size in reversed(steps):
                    within &= rest < stride * size
                    rest %= stride
                piece[within & (rest == 0)] = 0
        return True

    def copy_from(self, other: KVMemory) -> None:
        """Takes over the tokens of another memory of the same shape, and touches nothing else."""
        other.require_open()
        if other is self:
            return
        mine, theirs = self.raw.view(-1), other.raw.view(-1)
        first, second = sorted((self, other), key=id)  # others may copy the other way now
        with first.lock, second.lock, torch.no_grad():
            spans = other.in_use()
            for span in spans:
                self.touch(mine[span])
            self.rows.zero_mapped(0, mine.shape, (1,), torch_stream(self.pool))
            for span in spans:
                mine[span].copy_(theirs[span])
            self.length = other.length

    def like(self, dtype: torch.dtype | None = None) -> KVMemory:
        """Another memory on the same pool, and of the same tenant, with copies of the tokens."""
        made = KVMemory(
            self.shape,
            dtype or self.dtype,
            self.grow_dim,
            self.rows.page_bytes,
            self.pool,
            tenant=self.tenant,
        )
        made.copy_from(self)
        return made

    def __deepcopy__(self, memo: dict[int, Any]) -> KVMemory:
        self.require_open()
        return self.like()

    def __reduce__(self) -> tuple[Callable[..., KVMemory], tuple[Any, ...]]:
        self.require_open()
        flat = self.raw.view(-1)
        with self.lock:
            live = self.in_use()
            data = torch.cat([flat.new_empty(0), *(flat[span] for span in live)])
            spans = [(span.start, span.stop - span.start) for span in live]
            state = (self.shape, self.dtype, self.grow_dim, self.rows.page_bytes, self.length, spans, data)
        return rebuild_memory, state


def marked(tensor: torch.Tensor, conjugate: bool, negative: bool) -> torch.Tensor:
    """``tensor``, which shows the conjugates or negatives of what is in memory: a view of a view may."""
    tensor = torch._conj(tensor) if conjugate else tensor
    return torch._neg_view(tensor) if negative else tensor


def rebuild_memory(  # noqa: PLR0917 - pickle passes by position
    shape: tuple[int, ...],
    dtype: torch.dtype,
    grow_dim: int,
    page_bytes: int,
    length: int,
    spans: list[tuple[int, int]],
    data: torch.Tensor,
) -> KVMemory:
    """Makes a memory on the default pool of ``data``'s device, with ``data`` at ``spans``, which are pairs
    (first element, elements). Pickle calls this."""
    memory = KVMemory(shape, dtype, grow_dim, page_bytes, default_pool(data.device))
    flat = memory.raw.view(-1)
    at = 0
    for start, count in spans:
        target = flat[start : start + count]
        memory.touch(target)
        target.copy_(data[at : at + count])
        at += count
    memory.length = length
    return memory


_memories: weakref.WeakSet[KVMemory] = weakref.WeakSet()


def _forget_locks_of_parent() -> None:
    for memory in _memories:
        memory.lock = threading.RLock()


os.register_at_fork(after_in_child=_forget_locks_of_parent)


def _copy_without_holes(tensor: torch.Tensor) -> None:
    """Makes deepcopy and pickle of ``tensor`` copy what it shows, not its storage, which has unmapped holes
    between the rows. It changes the object and not its type, which must stay torch.Tensor."""
    reference = weakref.ref(tensor)  # the tensor holds these functions

    def compact() -> Any:
        tensor = reference()
        assert tensor is not None
        if not tensor.is_leaf:
            raise RuntimeError("only tensors created explicitly by the user can be copied deeply or pickled")
        return tensor.detach().clone().requires_grad_(tensor.requires_grad)

    def deepcopy(memo: dict[int, Any]) -> Any:
        return memo.setdefault(id(reference()), compact())

    def reduce(protocol: Any) -> Any:
        return compact().__reduce_ex__(protocol)

    vars(tensor).update(__deepcopy__=deepcopy, __reduce_ex__=reduce)
