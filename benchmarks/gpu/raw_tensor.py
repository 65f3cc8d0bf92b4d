"""A torch tensor over any address, through a DLPack capsule made here: no allocator, no owner."""

from __future__ import annotations

import ctypes
import math
from typing import Any

_CPU, _CUDA = 1, 2  # DLDeviceType
_FLOAT32 = (2, 32, 1)  # DLDataType: code, bits, lanes


class _DLTensor(ctypes.Structure):
    """By the specification: https://dmlc.github.io/dlpack/latest/c_api.html."""

    _fields_ = (
        ("data", ctypes.c_void_p),
        ("device_type", ctypes.c_int32),
        ("device_id", ctypes.c_int32),
        ("ndim", ctypes.c_int32),
        ("code", ctypes.c_uint8),
        ("bits", ctypes.c_uint8),
        ("lanes", ctypes.c_uint16),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("byte_offset", ctypes.c_uint64),
        # What manages it: nobody, so that no code runs when the tensor dies.
        ("context", ctypes.c_void_p),
        ("deleter", ctypes.c_void_p),
    )


_alive: list[Any] = []  # for good: torch may look at a capsule's struct for as long as the tensor lives


def float32_at(address: int, shape: tuple[int, ...], device: str) -> Any:
    """``device`` is ``cpu`` or ``cuda``; contiguous. Nothing is read."""
    import torch

    sizes = (ctypes.c_int64 * len(shape))(*shape)
    strides = (ctypes.c_int64 * len(shape))(*(math.prod(shape[at + 1 :]) for at in range(len(shape))))
    kind = _CPU if device == "cpu" else _CUDA
    made = _DLTensor(address, kind, 0, len(shape), *_FLOAT32, sizes, strides, 0, None, None)
    _alive.append((made, sizes, strides))
    new_capsule = ctypes.pythonapi.PyCapsule_New
    new_capsule.restype, new_capsule.argtypes = (
        ctypes.py_object,
        [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p],
    )
    return torch.from_dlpack(new_capsule(ctypes.addressof(made), b"dltensor", None))
