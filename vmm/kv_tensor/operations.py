"""What each torch operation does with a KVTensor: it looks at the geometry, views it, or touches part or all.

Every call that torch dispatches on a KVTensor comes to ``call``. Nothing in here reads memory before it is
mapped, and whatever leaves is either a KVTensor or a tensor over mapped memory.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch.utils._pytree import tree_flatten, tree_unflatten

from vmm.kv_tensor.reshaping import IN_PLACE, change_in_place, is_kv_tensor, native, require_shape
from vmm.kv_tensor.selecting import bounded, operate, selected

if TYPE_CHECKING:
    from vmm.kv_tensor.tensor import KVTensor

Rule = Callable[[str, Callable[..., Any], "KVTensor", tuple[Any, ...], dict[str, Any]], Any]


def call(func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    if isinstance(func, torch._ops.OpOverload | torch._ops.OpOverloadPacket):
        name = func.__name__.partition(".")[0]
        if name in IN_PLACE and args and is_kv_tensor(args[0]):  # some of them torch does not dispatch
            return change_in_place(name, func, args[0], args[1:], kwargs)
        with torch._C.DisableTorchFunctionSubclass():
            return func(*args, **kwargs)  # and on to dispatching.py
    name = func.__name__
    if name in {"__get__", "__set__", "__delete__"}:  # of a property
        name = f"{name.strip('_')}:{_property_name(func.__self__)}"  # type: ignore[attr-defined]
    first = args[0] if args else kwargs.get("input")
    rule = _RULES.get(name, _look if name.startswith("get:") else None)
    if rule is None or first is None or not is_kv_tensor(first):
        return consume(name, func, args, kwargs)
    if not args:
        kwargs = {key: value for key, value in kwargs.items() if key != "input"}
    return rule(name, func, first, args[1:], kwargs)


def _property_name(attribute: Any) -> str:
    """The name of a property. torch writes some of them in Python; these have a name only from Python 3.13
    on."""
    name: str = getattr(attribute, "__name__", None) or attribute.fget.__name__
    return name


def consume(name: str, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Maps the extent of every KVTensor among the arguments and calls ``func`` on tensors over it."""
    leaves, structure = tree_flatten((args, kwargs))
    tensors = [leaf for leaf in leaves if isinstance(leaf, torch.Tensor)]
    in_place = (
        (name.endswith("_") and not name.endswith("__"))
        or "out" in kwargs
        or kwargs.get("inplace") is True
        or name in _IN_PLACE
    )
    with torch._C.DisableTorchFunctionSubclass():
        gradients = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors)
    owners: dict[int, KVTensor] = {}
    for i, leaf in enumerate(leaves):
        if is_kv_tensor(leaf):
            leaves[i] = leaf._as_consumed(in_place and gradients)
            owners[id(leaves[i])] = leaf
    args, kwargs = tree_unflatten(leaves, structure)
    result = func(*args, **kwargs)
    if in_place:
        written = kwargs["out"] if "out" in kwargs else args[0]
        for leaf in tree_flatten(written)[0]:
            if id(leaf) in owners:
                owners[id(leaf)]._note_written(owners[id(leaf)]._raw, gradients)
                require_shape(name, leaf, owners[id(leaf)])
    return owners.get(id(result), result)


def _look(name: str, func: Any, tensor: KVTensor, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    with native():
        return func(tensor, *args, **kwargs)


def _measure(name: str, func: Any, tensor: KVTensor, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Asks the tensor's view of the memory, which knows the same and answers faster."""
    return func(tensor._raw, *args, **kwargs)


def _address(name: str, func: Any, tensor: KVTensor, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    raw = tensor._raw
    return tensor._memory.address + int(raw.storage_offset()) * raw.itemsize if raw.numel() else 0


def _interface(name: str, func: Any, tensor: KVTensor, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Gives the address to others, who may read and write there without telling: so all of it is mapped."""
    return consume(name, func, (tensor, *args), kwargs)


def _view(name: str, func: Any, tensor: KVTensor, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    tensor._memory.require_open()
    if tensor._memory.tracks_gradients or any(map(is_kv_tensor, (*args, *kwargs.values()))):
        made = tensor._viewed(lambda base: func(base, *args, **kwargs))
    else:
        made = func(tensor._raw, *args, **kwargs)
    if isinstance(made, torch.Tensor):
        if made.dtype.itemsize != tensor._memory.dtype.itemsize:  # it counts in other units than the memory
            return consume(name, func, (tensor, *args), kwargs)
        return tensor._wrap(made)
    return type(made)(map(tensor._wrap, made))


def _view_or_copy(
    name: str, func: Any, tensor: KVTensor, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Any:
    """An operation that copies only where it must, as ``reshape`` does."""
    shadow = torch.empty_strided(
        tensor._raw.shape, tensor._raw.stride(), dtype=tensor._raw.dtype, device="meta"
    )
    made = func(shadow, *args, **kwargs)
    if made.untyped_storage()._cdata == shadow.untyped_storage()._cdata:
        return _view(name, func, tensor, args, kwargs)
    return consume(name, func, (tensor, *args), kwargs)


def _narrow(name: str, func: Any, tensor: KVTensor, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    dim = args[0] if args else kwargs["dim"]
    return bounded(tensor, lambda base: func(base, *args, **kwargs), [dim])


def _own_method(name: str, func: Any, tensor: KVTensor, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Calls the method that KVTensor has in place of torch's."""
    return getattr(tensor, name)(*args, **kwargs)


def _iterate(name: str, func: Any, tensor: KVTensor, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    return iter(tensor.unbind(0))


def _selecting(name: str, func: Any, tensor: KVTensor, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Touches only what an index selects. The rest of the arguments are ordinary tensors."""
    selection = selected(name, tensor, args, kwargs)
    if selection is None or any(map(is_kv_tensor, (*args, *kwargs.values()))):
        return consume(name, func, (tensor, *args), kwargs)
    return operate(name, func, tensor, args, kwargs, on=selection)


def _zero(name: str, func: Any, tensor: KVTensor, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    memory, raw = tensor._memory, tensor._raw
    if memory.tracks_gradients:
        return consume(name, func, (tensor,), {})
    with memory.lock:
        if not memory.zero(raw):
            return consume(name, func, (tensor,), {})
    torch.autograd.graph.increment_version(raw)
    return tensor


def _copy(name: str, func: Any, tensor: KVTensor, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    source: Any = args[0] if args else kwargs.get("src")
    if is_kv_tensor(source) and tensor._is_whole() and source._is_whole() and tensor._same_kind(source):
        tensor._memory.copy_from(source._memory)
        torch.autograd.graph.increment_version(tensor._raw)
        return tensor
    return consume(name, func, (tensor, *args), kwargs)


def _convert(name: str, func: Any, tensor: KVTensor, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """``.to()`` and its kin give the tensor itself where nothing changes, and its tokens where the dtype
    does."""
    shadow = torch.empty((), dtype=tensor._raw.dtype, device=tensor._raw.device)
    args = tuple(arg.new_empty(()) if isinstance(arg, torch.Tensor) else arg for arg in args)
    made = func(shadow, *args, **kwargs)
    if isinstance(made, str):  # type()
        return made
    if made is shadow:
        return tensor
    if made.device == shadow.device and tensor._is_whole() and not tensor._memory.tracks_gradients:
        return tensor._over(tensor._memory.like(made.dtype))
    return consume(name, func, (tensor, *args), kwargs)


def _set_requires_grad(
    name: str, func: Any, tensor: KVTensor, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Any:
    with native():
        result = func(tensor, *args, **kwargs)
        if tensor.requires_grad:
            tensor._memory.track_gradients()
    return tensor if result is not None else None


# In-place operations whose names do not end as those of methods do.
_OPERATORS = "add sub mul truediv floordiv mod pow and or xor lshift rshift"
_IN_PLACE = {f"__i{name}__" for name in _OPERATORS.split()}

_NAMES = {
    _measure: """
        size dim ndimension stride numel nelement __len__ storage_offset is_contiguous element_size
        get_device is_floating_point is_complex is_signed is_conj is_neg
        get:shape get:dtype get:device get:ndim get:itemsize get:nbytes get:layout get:is_cuda get:is_cpu
        get:is_meta get:is_sparse get:is_quantized
        empty_like zeros_like ones_like full_like rand_like randn_like randint_like new_empty new_zeros
        new_ones new_full new_empty_strided
    """,
    _address: "data_ptr",
    _interface: "get:__cuda_array_interface__",
    _look: """
        is_inference is_shared is_pinned
        is_coalesced has_names is_same_size is_set_to __hash__ register_hook retain_grad backward
        register_post_accumulate_grad_hook untyped_storage _typed_storage storage_type
        new result_type can_cast __dlpack_device__
        _has_compatible_shallow_copy_type _is_view _is_zerotensor
        sym_size sym_stride sym_numel sym_storage_offset set:grad
    """,
    _view: """
        view transpose permute unsqueeze squeeze expand expand_as unflatten swapaxes swapdims movedim moveaxis
        t detach split split_with_sizes chunk unbind tensor_split hsplit vsplit dsplit diagonal unfold
        as_strided view_as view_as_real view_as_complex adjoint alias broadcast_to
        get:T get:H get:mT get:mH get:real get:imag get:data
    """,
    _view_or_copy: "reshape reshape_as flatten ravel contiguous",
    _narrow: "narrow select",
    _own_method: "record_stream __getitem__ __setitem__",
    _iterate: "__iter__",
    _selecting: """
        index_select gather take_along_dim index_copy_ index_add_ index_fill_ index_reduce_ index_put_
        scatter_ scatter_add_ scatter_reduce_
    """,
    _zero: "zero_",
    _copy: "copy_",
    _convert: """
        to type type_as cpu cuda float double half bfloat16 int long short char byte bool cfloat cdouble
    """,
    _set_requires_grad: "requires_grad_ set:requires_grad",
}
_RULES: dict[str, Rule] = {name: rule for rule, names in _NAMES.items() for name in names.split()}
_RULES |= dict.fromkeys(IN_PLACE, change_in_place)
