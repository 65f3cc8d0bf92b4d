"""The part of a KVTensor that an index selects: what is mapped of it, and how torch reads or writes just
that."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch.utils._pytree import tree_flatten

from vmm.kv_tensor.indexing import Selection, advanced, along, normalized, scattered
from vmm.kv_tensor.reshaping import native

if TYPE_CHECKING:
    from vmm.kv_tensor.tensor import KVTensor

# torch's own functions, which those of KVTensor call in the end.
item = torch.Tensor.__getitem__
set_item = torch.Tensor.__setitem__

_HALF = {torch.float16, torch.bfloat16}


def bounded(tensor: KVTensor, view: Callable[[torch.Tensor], torch.Tensor], dims: list[int]) -> torch.Tensor:
    """The view, which ends somewhere in the dimensions ``dims``. If one of them counts tokens it is mapped
    and a plain tensor; otherwise it is a KVTensor."""
    memory = tensor._memory
    region = view(tensor._raw)
    if not any(_counts_tokens(tensor, dim) for dim in dims):
        memory.require_open()
        return tensor._wrap(tensor._viewed(view) if memory.tracks_gradients else region)
    if not memory.tracks_gradients:
        return memory.plain(region)
    memory.touch(region)
    recorded: torch.Tensor = tensor._viewed(view)
    return recorded


def _counts_tokens(tensor: KVTensor, dim: int) -> bool:
    memory, raw = tensor._memory, tensor._raw
    if raw is memory.guarded:
        return dim % raw.dim() == memory.grow_dim
    stride = raw.stride(dim)
    return stride < memory.row and stride * (raw.shape[dim] - 1) >= memory.record


def gather(tensor: KVTensor, index: Any) -> torch.Tensor:
    """``tensor[index]`` for an index with tensors: a copy."""
    selection = advanced(tensor._raw, index)
    made: torch.Tensor = _on_selection(tensor, selection, lambda base: item(base, index), False, ())
    return made


def scatter(tensor: KVTensor, index: Any, value: Any) -> None:
    """``tensor[index] = value`` for an index with tensors."""
    selection = advanced(tensor._raw, index)
    _on_selection(tensor, selection, lambda base: set_item(base, index, value), True, value)


def _on_selection(
    tensor: KVTensor, selection: Selection, work: Callable[[Any], Any], in_place: bool, values: Any
) -> Any:
    """Calls ``work`` on the tensor, of which it touches only the selection; it must not return a view."""
    memory = tensor._memory
    gradients = torch.is_grad_enabled() and any(
        isinstance(leaf, torch.Tensor) and leaf.requires_grad for leaf in tree_flatten(values)[0]
    )
    with memory.lock:
        memory.touch_each(selection.offsets, selection.region)
        if tensor._raw.is_conj() or tensor._raw.is_neg():
            memory.touch(tensor._raw)  # torch conjugates or negates all of the memory, and back
        recorded = gradients or memory.tracks_gradients
        with native():
            result = work(tensor._as_recorded() if recorded else memory.writable(tensor._raw))
    if not in_place:
        return result
    tensor._note_written(selection.region, gradients, selection.offsets)
    return tensor


def selected(name: str, tensor: KVTensor, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Selection | None:
    """What the arguments of an operation of this name address; None where that is not clear."""
    if name.startswith("index_put"):
        indices = args[0] if args else kwargs["indices"]
        return advanced(tensor._raw, tuple(normalized(entry) for entry in indices))
    dim = args[0] if args else kwargs.get("dim")
    index = args[1] if len(args) > 1 else kwargs.get("index")
    if not isinstance(dim, int) or not isinstance(index, torch.Tensor):
        return None
    find = scattered if name.startswith(("scatter", "gather")) else along
    try:
        return find(tensor._raw, dim, index)
    except IndexError:
        return None  # torch has errors of its own for each


def operate(
    name: str, func: Any, tensor: KVTensor, args: tuple[Any, ...], kwargs: dict[str, Any], *, on: Selection
) -> Any:
    """Calls torch's operation ``func`` on the tensor, of which it touches only the selection ``on``."""
    work = _scatter_of_integers(func, tensor, args, kwargs) if name == "scatter_" else None
    if work is None and _rewrites_all(name, tensor, args, kwargs):
        tensor._memory.touch(tensor._raw)
    return _on_selection(
        tensor,
        on,
        work or (lambda base: func(base, *args, **kwargs)),
        in_place=name.endswith("_"),
        values=(args, kwargs),
    )


def _rewrites_all(name: str, tensor: KVTensor, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Whether torch writes all of the tensor, whatever is selected: it computes half-precision sums in
    float32 and copies them back, and divides everything for a mean."""
    if not name.startswith(("scatter_", "index_add_", "index_reduce_")):
        return False
    how = next((arg for arg in args if isinstance(arg, str)), kwargs.get("reduce"))
    return how == "mean" or tensor._raw.dtype in _HALF


def _scatter_of_integers(
    func: Any, tensor: KVTensor, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Callable[[Any], Any] | None:
    """scatter_() of half-precision numbers by their bits, because torch's own would write the whole tensor;
    None for other cases."""
    raw = tensor._raw
    given = dict(zip(("dim", "index", "src"), args, strict=False)) | kwargs
    values = given.get("src", given.get("value"))
    if raw.dtype not in _HALF or len(given) != 3 or values is None or tensor._memory.tracks_gradients:
        return None
    if not isinstance(values, torch.Tensor):
        bits: Any = int(torch.tensor(values, dtype=raw.dtype, device="cpu").view(torch.int16))
    elif values.dtype == raw.dtype and not values.requires_grad:
        bits = values.view(torch.int16)
    else:
        return None
    return lambda base: func(base.view(torch.int16), given["dim"], given["index"], bits)
