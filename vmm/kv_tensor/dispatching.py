"""What happens to operations that reach a KVTensor by torch's dispatcher, past Python's functions.

They come from functorch's transforms, C++ code, custom operations and ``torch.ops``, and below autograd, so
only values count here.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch.utils._pytree import tree_leaves, tree_map

from vmm.kv_tensor.reshaping import IN_PLACE, change_in_place, is_kv_tensor, raw, require_shape

if TYPE_CHECKING:
    from vmm.kv_tensor.tensor import KVTensor


# These operations read no memory and return none of it.
_LOOKS = """
    empty_like zeros_like ones_like full_like rand_like randn_like randint_like
    new_empty new_empty_strided new_zeros new_ones new_full
    is_same_size is_set_to is_pinned result_type can_cast
    size stride numel dim storage_offset sym_size sym_stride sym_numel sym_storage_offset
"""


def dispatched(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Calls ``func``, an operation of the dispatcher, with every KVTensor mapped that it reads or writes."""
    kind = _kind(func)
    if kind.name in IN_PLACE and is_kv_tensor(args[0]):
        return change_in_place(kind.name, func, args[0], args[1:], kwargs)
    if kind.name == "record_stream":
        return args[0].record_stream(*args[1:], **kwargs)
    if kind.looks or kind.views:
        raw_args, raw_kwargs = tree_map(raw, (args, kwargs))
        result = func(*raw_args, **raw_kwargs)
        if kind.looks:
            return result
        tensor = args[0]  # of every view operation
        if all(view.dtype.itemsize == tensor._memory.dtype.itemsize for view in tree_leaves(result)):
            return tree_map(tensor._wrap, result)  # else it counts in other units than the memory
    return _on_mapped(func, kind, args, kwargs)


def _on_mapped(func: Any, kind: _Kind, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    mapped: dict[int, torch.Tensor] = {}
    owners: dict[int, KVTensor] = {}

    def usable(leaf: Any) -> Any:
        if not is_kv_tensor(leaf):
            return leaf
        if id(leaf) not in mapped:
            mapped[id(leaf)] = plain = leaf._memory.plain(leaf._raw)
            owners[id(plain)] = leaf
        return mapped[id(leaf)]

    args, kwargs = tree_map(usable, (args, kwargs))
    result = func(*args, **kwargs)
    for place, name in kind.written:
        for leaf in tree_leaves(args[place] if place < len(args) else kwargs.get(name)):
            if (owner := owners.get(id(leaf))) is not None:
                owner._note_written(owner._raw, gradients=False)
                require_shape(kind.name, leaf, owner)
    return tree_map(lambda leaf: owners.get(id(leaf), leaf), result)


class _Kind(NamedTuple):
    """What the schema says of an operation."""

    name: str
    looks: bool
    views: bool
    written: tuple[tuple[int, str], ...]  # places and names of arguments


@cache
def _kind(func: Any) -> _Kind:
    schema = func._schema
    name = schema.name.partition("::")[2]
    aliases = [value.alias_info for value in schema.returns if value.alias_info is not None]
    return _Kind(
        name,
        looks=name in _LOOKS.split() and not schema.is_mutable,
        views=bool(aliases) and not any(alias.is_write for alias in aliases),
        written=tuple(
            (place, argument.name)
            for place, argument in enumerate(schema.arguments)
            if argument.alias_info is not None and argument.alias_info.is_write
        ),
    )
