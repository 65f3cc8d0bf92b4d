"""Tensors over our memory, which leaves the engine as DLPack capsules.

The codes are DLPack's: https://dmlc.github.io/dlpack/latest/c_api.html.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch._C import _from_dlpack

from vmm.errors import InvalidArgument

if TYPE_CHECKING:
    from vmm._core import Lease

# The float8 types are newer than what every torch reads from a capsule, so they travel as bytes.
_FLOAT8 = {value for name, value in vars(torch).items() if name.startswith("float8_")}
_CODES = {
    torch.float64: 2, torch.float32: 2, torch.float16: 2, torch.bfloat16: 4,
    torch.complex128: 5, torch.complex64: 5, torch.bool: 6,
    torch.int8: 0, torch.int16: 0, torch.int32: 0, torch.int64: 0,
    torch.uint8: 1, torch.uint16: 1, torch.uint32: 1, torch.uint64: 1,
    **dict.fromkeys(_FLOAT8, 1),
}  # fmt: skip
DTYPES = frozenset(_CODES)
#: The dtypes that the K and V of a cache may have.
FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)


def checked_float(dtype: Any) -> torch.dtype:
    """``dtype``, which must be one of ``FLOATS``. Raises InvalidArgument."""
    if not isinstance(dtype, torch.dtype) or dtype not in FLOATS:
        raise InvalidArgument(f"dtype is {dtype!r}; expected one of {', '.join(map(str, FLOATS))}")
    return dtype


def type_of(dtype: torch.dtype) -> dict[str, int]:
    """How the engine is told of ``dtype``: the keyword arguments ``type_code`` and ``type_bits``."""
    return {"type_code": _CODES[dtype], "type_bits": 8 * dtype.itemsize}


def consumed(capsule: object, dtype: torch.dtype) -> torch.Tensor:
    """The capsule's tensor, as one of ``dtype``."""
    tensor: torch.Tensor = _from_dlpack(capsule)
    return tensor if tensor.dtype == dtype else tensor.view(dtype)


def tensor_over(
    lease: Lease, dtype: torch.dtype, shape: Sequence[int], strides: Sequence[int], *, offset_bytes: int = 0
) -> torch.Tensor:
    """A tensor over the lease's addresses, whether or not they are mapped. ``strides`` count elements."""
    capsule = lease.dlpack(offset_bytes=offset_bytes, shape=shape, strides=strides, **type_of(dtype))
    with torch.inference_mode(False):  # a tensor made in inference mode could be written only in that mode
        return consumed(capsule, dtype)
