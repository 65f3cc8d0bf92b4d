"""What an index expression selects of a strided tensor, without looking at the tensor's memory."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch

_BASIC = (int, slice, type(None), type(Ellipsis))
_NO_NUMBER = (slice, type(None), type(Ellipsis))
_INDEX_DTYPES = {torch.int64, torch.int32, torch.uint8, torch.bool}


def is_simple(index: Any, grow_dim: int) -> bool:
    """Whether the index is a bounded one of the usual form, ``[:b, s:e]``. This is fast; False says
    nothing."""
    if type(index) is not tuple or len(index) <= grow_dim:
        return False
    for entry in index:
        if type(entry) is not slice and type(entry) is not int:
            return False
    return is_bound(index[grow_dim])


def is_basic(index: Any) -> bool:
    """Whether ``tensor[index]`` is a view: integers, slices, None and Ellipsis only."""
    if type(index) is tuple:
        return all(map(_is_basic_entry, index))
    return _is_basic_entry(index)


def _is_basic_entry(entry: Any) -> bool:
    return isinstance(entry, _BASIC) and not isinstance(entry, bool)


def normalized(index: Any) -> Any:
    """The index with what torch takes for a tuple, integer or tensor as one. Raises what torch raises."""
    index = _as_tuple(index)
    return tuple(map(_normalized_entry, index)) if type(index) is tuple else _normalized_entry(index)


def _as_tuple(index: Any) -> Any:
    """``index`` as torch sees it, to which short sequences of more than numbers are tuples."""
    if isinstance(index, tuple):
        return tuple(index)
    if not isinstance(index, Sequence) or len(index) >= 32:
        return index
    more = any(isinstance(entry, _NO_NUMBER) or hasattr(entry, "__len__") for entry in index)
    return tuple(index) if more else index


def _normalized_entry(entry: Any) -> Any:
    if isinstance(entry, (bool, *_BASIC)):
        return entry
    if isinstance(entry, torch.Tensor):
        entry = entry.detach().as_subclass(torch.Tensor)
    elif hasattr(entry, "__len__"):
        entry = torch.as_tensor(entry)
        entry = entry if _is_mask(entry) else entry.to(torch.int64)
    else:
        try:
            return operator.index(entry)
        except TypeError:
            raise IndexError(
                "only integers, slices (`:`), ellipsis (`...`), None and long or byte Variables are valid"
                f" indices (got {type(entry).__name__})"
            ) from None
    if entry.dim() == 0 and not _is_mask(entry) and not entry.is_floating_point():
        return int(entry)
    if entry.dtype not in _INDEX_DTYPES:
        raise IndexError("tensors used as indices must be long, int, byte or bool tensors")
    return entry


def entries_by_dimension(index: Any, ndim: int) -> list[tuple[int, Any]]:
    """Pairs (dimension, entry) for the entries of a basic index that address a dimension."""
    index = index if type(index) is tuple else (index,)
    addressed = sum(entry is not None and entry is not Ellipsis for entry in index)
    out, dimension = [], 0
    for entry in index:
        if entry is Ellipsis:
            dimension += ndim - addressed
        elif entry is not None:
            out.append((dimension, entry))
            dimension += 1
    return out


def is_bound(entry: Any) -> bool:
    """Whether an entry says where to end: a slice without a stop runs as far as the tensor does."""
    return not isinstance(entry, slice) or entry.stop is not None


class Selection(NamedTuple):
    """The elements that ``region`` would have if it began at each of ``offsets``."""

    offsets: torch.Tensor
    region: torch.Tensor


def advanced(tensor: torch.Tensor, index: Any) -> Selection:
    """What a normalized index with tensors selects. Raises IndexError as torch does."""
    index = index if type(index) is tuple else (index,)
    switches = [entry for entry in index if _is_switch(entry)]  # these add a dimension
    index = [entry for entry in index if not _is_switch(entry)]
    addressed = sum(map(_dimensions_addressed, index))
    if addressed > tensor.dim():
        raise IndexError(f"too many indices for tensor of dimension {tensor.dim()}")
    basic: list[Any] = []
    parts: list[tuple[int, torch.Tensor]] = []  # (dimension, positions along it)
    for entry in index:
        if entry is Ellipsis:
            basic += [slice(None)] * (tensor.dim() - addressed)
        elif _is_mask(entry):
            shape = tensor.shape[len(basic) : len(basic) + entry.dim()]
            if entry.shape != shape:
                raise IndexError(
                    f"the mask has shape {list(entry.shape)}; the dimensions that it addresses {list(shape)}"
                )
            parts += [(len(basic) + i, where) for i, where in enumerate(entry.nonzero(as_tuple=True))]
            basic += [slice(None)] * entry.dim()
        elif isinstance(entry, torch.Tensor):
            parts.append((len(basic), entry))
            basic.append(slice(None))
        elif entry is not None:
            basic.append(entry)
    return _select(tensor, basic, parts, nothing=not all(map(bool, switches)))


def _select(
    tensor: torch.Tensor, basic: list[Any], parts: list[tuple[int, torch.Tensor]], nothing: bool
) -> Selection:
    for dimension, _ in parts:
        basic[dimension] = slice(0, 1)
    region = tensor[tuple(basic)]
    # torch looks at no position where nothing is selected.
    if nothing or region.numel() == 0 or any(where.numel() == 0 for _, where in parts):
        return Selection(torch.empty(0, dtype=torch.int64, device="cpu"), region)
    offsets = torch.tensor(region.storage_offset(), device="cpu")
    for dimension, where in parts:
        size, positions = tensor.shape[dimension], where.cpu().to(torch.int64)
        outside = positions[(positions < -size) | (positions >= size)]
        if outside.numel():
            raise IndexError(
                f"index {int(outside[0])} is out of bounds for dimension {dimension} with size {size}"
            )
        try:
            offsets = offsets + positions.remainder(size) * tensor.stride(dimension)
        except RuntimeError:
            raise IndexError("shape mismatch: indexing tensors could not be broadcast together") from None
    return Selection(offsets.reshape(-1), region)


def _is_switch(entry: Any) -> bool:
    return isinstance(entry, bool) or (_is_mask(entry) and entry.dim() == 0)


def _is_mask(entry: Any) -> bool:
    return isinstance(entry, torch.Tensor) and entry.dtype in {torch.bool, torch.uint8}


def _dimensions_addressed(entry: Any) -> int:
    if entry is None or entry is Ellipsis:
        return 0
    return entry.dim() if _is_mask(entry) else 1


def along(tensor: torch.Tensor, dim: int, positions: torch.Tensor) -> Selection:
    """What ``index_select`` and its kin address: whole slices at ``positions`` of one dimension."""
    return advanced(tensor, (slice(None),) * (dim % max(1, tensor.dim())) + (positions.reshape(-1),))


def scattered(tensor: torch.Tensor, dim: int, positions: torch.Tensor) -> Selection | None:
    """What ``gather`` and ``scatter_`` address: one element for each of ``positions``."""
    dim %= max(1, tensor.dim())
    if positions.dim() != tensor.dim():
        return None
    grid = torch.meshgrid(*(torch.arange(size, device="cpu") for size in positions.shape), indexing="ij")
    return advanced(tensor, tuple(positions if i == dim else grid[i] for i in range(tensor.dim())))
