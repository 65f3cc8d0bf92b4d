"""Operations that give a tensor another shape, or other memory, where it stands."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeGuard

import torch

from vmm.errors import InvalidArgument
from vmm.kv_tensor.lifecycle import Lifecycle

if TYPE_CHECKING:
    from vmm.kv_tensor.tensor import KVTensor


class native:
    """Lets torch treat a KVTensor as any tensor within this context: what is touched must be mapped."""

    __slots__ = ("_dispatch", "_function")

    def __enter__(self) -> None:
        self._function = torch._C.DisableTorchFunctionSubclass()
        self._function.__enter__()
        self._dispatch = torch._C._DisableTorchDispatch()
        self._dispatch.__enter__()  # type: ignore[no-untyped-call]

    def __exit__(self, *_: object) -> None:
        self._dispatch.__exit__(None, None, None)
        self._function.__exit__(None, None, None)


# The same elements, seen in another way.
_VIEWS = frozenset(["squeeze_", "unsqueeze_", "transpose_", "t_", "swapaxes_", "swapdims_", "as_strided_"])
_SIZES = frozenset(["resize_", "resize_as_"])
_REFUSED = frozenset(["set_", "set", "set_data", "set:data", "swap_", "rename_", "share_memory_", "resize"])
IN_PLACE = _VIEWS | _SIZES | _REFUSED | {"detach_"}


def change_in_place(
    name: str, func: Any, tensor: KVTensor, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> KVTensor:
    """Calls ``func``, the operation of IN_PLACE of this name. Raises InvalidArgument where more would change
    than how the elements are seen; a resize to what the tensor is already changes nothing."""
    if name in _VIEWS:
        return _seen_otherwise(func, tensor, args, kwargs)
    if name in _SIZES and _keeps_size(func, tensor, args, kwargs):
        return tensor
    if name == "detach_" and not tensor._memory.tracks_gradients:
        return tensor
    raise InvalidArgument(f"{name}: the memory of a KVTensor stays where it is, and as large as it is")


def _seen_otherwise(func: Any, tensor: KVTensor, args: tuple[Any, ...], kwargs: dict[str, Any]) -> KVTensor:
    memory = tensor._memory
    memory.require_open()
    after = tensor._raw[...]
    func(after, *args, **kwargs)
    if not _alike(after, tensor._raw):
        with native():
            func(tensor, *args, **kwargs)
        tensor._raw = memory.guarded if _alike(after, memory.guarded) else after
    return tensor


def _alike(a: torch.Tensor, b: torch.Tensor) -> bool:
    return a.is_set_to(b) and (a.dtype, a.is_conj(), a.is_neg()) == (b.dtype, b.is_conj(), b.is_neg())


def _keeps_size(func: Any, tensor: KVTensor, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    sizes, strides = tensor._raw.shape, tensor._raw.stride()
    shadow = torch.empty_strided(sizes, strides, dtype=tensor._raw.dtype, device="meta")
    func(shadow, *map(raw, args), **{key: raw(value) for key, value in kwargs.items()})
    return (shadow.shape, shadow.stride()) == (sizes, strides)


def require_shape(name: str, written: torch.Tensor, owner: KVTensor) -> None:
    """Raises InvalidArgument where torch has given ``written``, which stood for ``owner``, the shape of a
    result that is another: it says so only in a warning, and ``owner`` has kept its own."""
    if written.shape != owner._raw.shape:
        raise InvalidArgument(
            f"{name}: the result has shape {tuple(written.shape)}; expected a KVTensor of that shape to write"
            f" to, not of {tuple(owner._raw.shape)}, which it keeps"
        )


def is_kv_tensor(value: Any) -> TypeGuard[KVTensor]:
    return isinstance(value, Lifecycle)  # of nothing else


def raw(leaf: Any) -> Any:
    return leaf._raw if is_kv_tensor(leaf) else leaf
