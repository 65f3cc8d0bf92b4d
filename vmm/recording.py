"""``tensor.record_stream(stream)``, for every tensor over the memory of a pool on a GPU.

torch's own method tells torch's allocator, which silently ignores memory that is not its own: a slice of a
KVTensor, a KVCache's K, a view of either. The type of these must be torch.Tensor, so the method of
torch.Tensor is replaced when the first of them is made. For every other tensor it does, and says, what
torch's does.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable
from typing import Any

import torch
from torch.overrides import handle_torch_function, has_torch_function_unary

from vmm.open_pools import pool_of_address
from vmm.pool import Pool
from vmm.stream import handle_of

_lock = threading.Lock()
_installed: list[Callable[..., Any]] = []  # at most one


def install() -> None:
    """Replaces the method, the first time it is called. Safe from any thread."""
    with _lock:
        if not _installed:
            _installed.append(_in_place_of(torch.Tensor.record_stream))
            torch.Tensor.record_stream = _installed[0]  # type: ignore[method-assign]


def _in_place_of(of_torch: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(of_torch)  # of which inspect and help() then speak
    def record_stream(*args: Any, **kwargs: Any) -> Any:
        pool = _pool_behind(args[0]) if args and len(args) + len(kwargs) == 2 else None
        if pool is None or (kwargs and "s" not in kwargs):
            return of_torch(*args, **kwargs)
        tensor = args[0]
        if has_torch_function_unary(tensor):  # of a subclass, or a mode: in the end it comes back
            return handle_torch_function(record_stream, (tensor,), *args, **kwargs)
        pool._core.watch(handle_of(kwargs["s"] if kwargs else args[1]))
        return None

    # As what it is to be found by when it is pickled.
    record_stream.__module__, record_stream.__qualname__ = "torch", "Tensor.record_stream"
    return record_stream


def _pool_behind(tensor: Any) -> Pool | None:
    if not isinstance(tensor, torch.Tensor):
        return None
    if type(tensor).__torch_dispatch__ is not torch.Tensor.__torch_dispatch__:
        return None  # it may have no memory, and minds being asked; a KVTensor has a method of its own
    try:
        with torch._C.DisableTorchFunction():
            address = tensor.data_ptr()
    except RuntimeError:  # a tensor of a transform has none
        return None
    return pool_of_address(address) if address else None
