"""The memory behind KVTensors: one contiguous range of addresses, backed by pages where it was touched."""

from __future__ import annotations

import math
import threading
import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch._C import _from_dlpack

from vmm import _core
from vmm.errors import Closed
from vmm.pool import Pool, default_pool

# DLPack's type codes: https://dmlc.github.io/dlpack/latest/c_api.html. The float8 types are newer than what
# every torch reads: they travel as bytes.
_FLOAT8 = {value for name, value in vars(torch).items() if name.startswith("float8_")}
_TYPE_CODES = {
    torch.float64: 2, torch.float32: 2, torch.float16: 2, torch.bfloat16: 4,
    torch.complex128: 5, torch.complex64: 5, torch.bool: 6,
    torch.int8: 0, torch.int16: 0, torch.int32: 0, torch.int64: 0,
    torch.uint8: 1, torch.uint16: 1, torch.uint32: 1, torch.uint64: 1,
    **dict.fromkeys(_FLOAT8, 1),
}  # fmt: skip
DTYPES = frozenset(_TYPE_CODES)


class KVMemory:
    """What a KVTensor and its views share. ``shape`` and ``grow_dim`` are those of the whole tensor.

    Safe from any thread: ``lock`` is held by whatever writes through ``raw`` or releases.
    """

    def __init__(
        self, shape: tuple[int, ...], dtype: torch.dtype, grow_dim: int, page_bytes: int, pool: Pool
    ) -> None:
        self.shape, self.dtype, self.grow_dim = shape, dtype, grow_dim
        self.pool = pool
        self.tokens = shape[grow_dim]
        self.record = math.prod(shape[grow_dim + 1 :])  # elements of a token in a row
        self.row = self.tokens * self.record
        self.rows = _core.Rows(
            pool._core,
            rows=math.prod(shape[:grow_dim]),
            tokens=self.tokens,
            record_bytes=self.record * dtype.itemsize,
            page_bytes=page_bytes,
            type_code=_TYPE_CODES[dtype],
            type_bits=8 * dtype.itemsize,
        )
        self.lock = threading.RLock()
        self.length = 0  # tokens up to the last one written through the tensor, in any row
        self.tracks_gradients = False  # then indexing must be what autograd can see
        strides = tuple(math.prod(shape[i + 1 :]) for i in range(len(shape)))
        with torch.inference_mode(False):  # or only inference mode could ever write into it
            self.raw = self._consume(self.rows.base(shape, strides))  # all of it, mapped or not

    def _consume(self, capsule: object) -> torch.Tensor:
        tensor: torch.Tensor = _from_dlpack(capsule)
        return tensor.view(self.dtype) if self.dtype in _FLOAT8 else tensor

    def require_open(self) -> None:
        if self.rows.ended:
            raise Closed("this KVTensor is closed")

    def touch(self, region: torch.Tensor) -> None:
        """Maps what ``region``, a view of ``raw``, covers. Raises OutOfPages or Closed."""
        self.rows.touch(int(region.storage_offset()), region.shape, region.stride())

    def touch_each(self, offsets: torch.Tensor, region: torch.Tensor) -> None:
        """Maps what ``region`` would cover if it began at each of ``offsets`` (int64, in elements)."""
        offsets = offsets.to(torch.int64).contiguous()
        self.rows.touch_each(offsets.data_ptr(), offsets.numel(), region.shape, region.stride())

    def plain(self, region: torch.Tensor) -> torch.Tensor:
        """``region``, a view of ``raw``, as a tensor with a storage of its own that ends where it does,
        mapped, and safe from release() while it lives. Raises OutOfPages or Closed."""
        capsule, holes = self.rows.slice(int(region.storage_offset()), region.shape, region.stride())
        tensor = self._consume(capsule)
        if torch.is_grad_enabled():
            # Writes through the KVTensor count as changes of what autograd has saved of its slices.
            counted = self.raw.detach()
            counted.data = tensor
            tensor = counted
        if holes:
            _copy_without_holes(tensor)
        return tensor

    def note_written(self, region: torch.Tensor) -> None:
        """Raises ``length`` to the last token that ``region`` covers."""
        if region.numel() == 0:
            return
        # The last element, but for the steps from row to row.
        in_row = region.storage_offset() % self.row
        for size, stride in zip(region.shape, region.stride(), strict=True):
            if stride % self.row:
                in_row += (size - 1) * stride
        token = in_row // self.record + 1
        if token > self.length:
            self.length = min(token, self.tokens)  # a view that runs on into the next row wrote all

    def copy_from(self, other: KVMemory) -> None:
        """Takes over another memory's tokens: of the same shape, and nothing else is touched."""
        size = self.dtype.itemsize
        mine, theirs = self.raw.view(-1), other.raw.view(-1)
        with self.lock, other.lock, torch.no_grad():
            self.rows.zero_mapped(0, mine.shape, (1,))
            for start, count in other.rows.in_use():
                target = mine[start // size : (start + count) // size]
                self.touch(target)
                target.copy_(theirs[start // size : (start + count) // size])
            self.length = other.length

    def like(self, dtype: torch.dtype | None = None) -> KVMemory:
        """Another memory on the same pool, with copies of the tokens."""
        made = KVMemory(self.shape, dtype or self.dtype, self.grow_dim, self.rows.page_bytes, self.pool)
        made.copy_from(self)
        return made

    def __deepcopy__(self, memo: dict[int, Any]) -> KVMemory:
        self.require_open()
        return self.like()

    def __reduce__(self) -> tuple[Callable[..., KVMemory], tuple[Any, ...]]:
        self.require_open()
        size = self.dtype.itemsize
        flat = self.raw.view(-1)
        with self.lock:
            spans = [(start // size, count // size) for start, count in self.rows.in_use()]
            data = torch.cat([flat.new_empty(0), *(flat[start : start + count] for start, count in spans)])
            state = (self.shape, self.dtype, self.grow_dim, self.rows.page_bytes, self.length, spans, data)
        return rebuild_memory, state


def rebuild_memory(  # noqa: PLR0917 - pickle passes by position
    shape: tuple[int, ...],
    dtype: torch.dtype,
    grow_dim: int,
    page_bytes: int,
    length: int,
    spans: list[tuple[int, int]],
    data: torch.Tensor,
) -> KVMemory:
    """For pickle: a memory on the default pool, with ``data`` at ``spans`` of (first element, elements)."""
    memory = KVMemory(shape, dtype, grow_dim, page_bytes, default_pool())
    flat = memory.raw.view(-1)
    at = 0
    for start, count in spans:
        target = flat[start : start + count]
        memory.touch(target)
        target.copy_(data[at : at + count])
        at += count
    memory.length = length
    return memory


def _copy_without_holes(tensor: torch.Tensor) -> None:
    """Makes deepcopy and pickle of ``tensor`` copy what it shows, not its storage, which has unmapped holes
    between the rows. On the object, because its type must stay torch.Tensor."""
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
