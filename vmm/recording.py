"""``tensor.record_stream(stream)``, for every tensor over a pool's memory.

torch's own tells torch's allocator, which silently ignores memory that is not its own: a slice of a KVTensor,
a KVCache's K, a view of either. Their type must be torch.Tensor, so its method is what is replaced.
"""

from __future__ import annotations

import functools
from typing import Any

import torch

from vmm.pool import pool_of_address
from vmm.stream import handle_of

_of_torch = torch.Tensor.record_stream


@functools.wraps(_of_torch)
def _record_stream(self: torch.Tensor, s: Any) -> None:
    try:
        address = self.data_ptr()
    except RuntimeError:  # a tensor of a transform has none
        address = 0
    pool = pool_of_address(address) if address else None
    if pool is None:
        _of_torch(self, s)
    else:
        pool._core.watch(handle_of(s))


def install() -> None:
    """Once is enough."""
    torch.Tensor.record_stream = _record_stream  # type: ignore[method-assign, assignment]
