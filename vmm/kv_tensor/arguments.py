"""Checks of a KVTensor's arguments; each error names the argument and says what was expected."""

from __future__ import annotations

import math
from operator import index
from typing import Any

import torch

from vmm.arguments import chosen_page_bytes
from vmm.dlpack import DTYPES
from vmm.errors import InvalidArgument
from vmm.pool import Pool
from vmm.units import format_bytes

_LARGEST_BYTES = 2**47  # what user space can address
_MOST_ROWS = 2**24  # each has a high-water mark
_MOST_PAGES = 2**26  # each has eight bytes in a table


def checked_dtype(dtype: Any) -> torch.dtype:
    """``dtype``, or torch's default where it is None. Raises InvalidArgument for one that DLPack lacks."""
    dtype = torch.get_default_dtype() if dtype is None else dtype
    if dtype not in DTYPES:
        raise InvalidArgument(f"dtype is {dtype!r}; expected a torch.dtype that DLPack knows")
    return dtype  # type: ignore[no-any-return]


def tensor_device(device: Any, pool: Any) -> torch.device | None:
    """The device for a tensor: the one given, or torch's default device where no pool is given either."""
    if device is None:
        return torch.get_default_device() if pool is None else None
    return torch.device(device)


def checked_grow_dim(grow_dim: Any, sizes: tuple[int, ...]) -> int:
    """``grow_dim`` counted from the front. Raises InvalidArgument, also for too many rows before it."""
    if type(grow_dim) is not int or not -len(sizes) <= grow_dim < len(sizes):
        raise InvalidArgument(
            f"grow_dim is {grow_dim!r}; expected one of the {len(sizes)} dimensions of shape {sizes}"
        )
    dimension: int = grow_dim % len(sizes)
    rows = math.prod(sizes[:dimension])
    if rows > _MOST_ROWS:
        raise InvalidArgument(f"shape is {sizes!r}: {rows} rows before grow_dim; expected at most 2^24")
    return dimension


def chosen_page_size(page_bytes: Any, pool: Pool, sizes: tuple[int, ...], dtype: torch.dtype) -> int:
    """The page size in bytes, which ``pool`` has and which is large enough for a tensor of this shape."""
    chosen = chosen_page_bytes(page_bytes, pool)
    if math.prod(sizes) * dtype.itemsize > _MOST_PAGES * chosen:
        raise InvalidArgument(f"page_bytes is {chosen}: more than 2^26 pages for shape {sizes!r}")
    return chosen


def checked_shape(shape: tuple[Any, ...], dtype: torch.dtype) -> tuple[int, ...]:
    """The sizes, which may be given one by one or as one tuple or list. Raises InvalidArgument."""
    sizes = tuple(shape[0]) if len(shape) == 1 and isinstance(shape[0], (tuple, list)) else shape
    if not sizes or not all(
        hasattr(size, "__index__") and not isinstance(size, bool) and size > 0 for size in sizes
    ):
        raise InvalidArgument(f"shape is {sizes!r}; expected at least one dimension, each a positive integer")
    sizes = tuple(map(index, sizes))
    size_bytes = math.prod(sizes) * dtype.itemsize
    if size_bytes > _LARGEST_BYTES:
        raise InvalidArgument(
            f"shape is {sizes!r}: {format_bytes(size_bytes)} are more than can be addressed"
        )
    return sizes


def kind_of(x: Any) -> str:
    """What ``x`` is, in the words of an error."""
    return (
        f"a {x.layout} tensor of {x.dtype} on {x.device}"
        if isinstance(x, torch.Tensor)
        else f"a {type(x).__name__}"
    )


def require_fitting(value: Any, region: torch.Tensor) -> None:
    """Raises torch's own error, before anything is mapped, when ``value`` cannot be written to ``region``."""
    if isinstance(value, (int, float)):
        torch.empty((), dtype=region.dtype, device="cpu").fill_(value)  # raises where it is too large
        return
    if isinstance(value, torch.Tensor):
        if value.shape == region.shape:
            return
        sizes = value.shape[max(0, value.dim() - region.dim()) :]
        tail = region.shape[region.dim() - len(sizes) :]
        if all(a in (1, b) for a, b in zip(sizes, tail, strict=True)) and value.numel() == sizes.numel():
            return
    torch.empty(region.shape, dtype=region.dtype, device="meta")[...] = value
