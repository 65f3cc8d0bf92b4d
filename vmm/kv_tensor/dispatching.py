"""What reaches a KVTensor by torch's dispatcher, past Python's functions: from functorch's transforms,
C++ code, custom operations and ``torch.ops``. It comes below autograd: values are all that counts.
"""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import torch
from torch.utils._pytree import tree_flatten, tree_map

from vmm.errors import InvalidArgument

if TYPE_CHECKING:
    from vmm.kv_tensor.tensor import KVTensor


class native:
    """Within it torch does with a KVTensor what it does with any tensor: what is touched must be mapped."""

    def __enter__(self) -> None:
        self._guards = ExitStack()
        self._guards.enter_context(torch._C.DisableTorchFunctionSubclass())
        self._guards.enter_context(torch._C._DisableTorchDispatch())

    def __exit__(self, *_: object) -> None:
        self._guards.close()


# Read no memory, and return none of it.
_LOOKS = frozenset(
    [
        "empty_like",
        "zeros_like",
        "ones_like",
        "full_like",
        "rand_like",
        "randn_like",
        "randint_like",
        "new_empty",
        "new_empty_strided",
        "new_zeros",
        "new_ones",
        "new_full",
        "is_same_size",
        "is_set_to",
        "is_pinned",
        "result_type",
        "can_cast",
        "sym_size",
        "sym_stride",
        "sym_numel",
        "sym_storage_offset",
        "size",
        "stride",
        "numel",
        "dim",
        "storage_offset",
    ]
)
# Give a tensor other memory, or another shape.
_REFUSED = frozenset(
    [
        "resize_",
        "resize_as_",
        "set_",
        "set",
        "swap_",
        "squeeze_",
        "unsqueeze_",
        "transpose_",
        "t_",
        "detach_",
        "swapaxes_",
        "swapdims_",
        "as_strided_",
        "rename_",
        "set_data",
        "resize",
    ]
)


def dispatched(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """``func``, an operation of the dispatcher, where every KVTensor is mapped that it reads or writes."""
    name = func._schema.name.partition("::")[2]
    refuse(name, args)
    if name in _LOOKS and not func._schema.is_mutable:
        return func(*tree_map(_raw, args), **tree_map(_raw, kwargs))
    if _is_view(func._schema):
        tensor = args[0]  # of every view operation
        result = func(*tree_map(_raw, args), **tree_map(_raw, kwargs))
        made = tree_flatten(result)[0]
        if all(view.dtype.itemsize == tensor._memory.dtype.itemsize for view in made):
            return tree_map(tensor._wrap, result)  # else it counts in other units than the memory
    return _on_mapped(func, args, kwargs)


def refuse(name: str, args: tuple[Any, ...]) -> None:
    """Raises InvalidArgument where the operation of this name would give a KVTensor other memory."""
    if name in _REFUSED and args and _is_kv_tensor(args[0]):
        raise InvalidArgument(f"{name}: the memory of a KVTensor stays where it is, and as large as it is")


def _on_mapped(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    mapped: dict[int, torch.Tensor] = {}
    owners: dict[int, KVTensor] = {}

    def usable(leaf: Any) -> Any:
        if not _is_kv_tensor(leaf):
            return leaf
        if id(leaf) not in mapped:
            mapped[id(leaf)] = plain = leaf._memory.plain(leaf._raw)
            owners[id(plain)] = leaf
        return mapped[id(leaf)]

    args, kwargs = tree_map(usable, args), tree_map(usable, kwargs)
    result = func(*args, **kwargs)
    for argument in _written(func._schema, args, kwargs):
        for leaf in tree_flatten(argument)[0]:
            if (owner := owners.get(id(leaf))) is not None:
                owner._note_written(owner._raw, gradients=False)
    return tree_map(lambda leaf: owners.get(id(leaf), leaf), result)


def _is_kv_tensor(value: Any) -> bool:
    from vmm.kv_tensor.tensor import KVTensor

    return isinstance(value, KVTensor)


def _raw(leaf: Any) -> Any:
    return leaf._raw if _is_kv_tensor(leaf) else leaf


def _is_view(schema: Any) -> bool:
    aliases = [value.alias_info for value in schema.returns if value.alias_info is not None]
    return bool(aliases) and not any(alias.is_write for alias in aliases)


def _written(schema: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Any]:
    """The arguments that the schema says are written."""
    given = dict(zip((argument.name for argument in schema.arguments), args, strict=False)) | kwargs
    return [
        given[argument.name]
        for argument in schema.arguments
        if argument.alias_info is not None and argument.alias_info.is_write and argument.name in given
    ]
