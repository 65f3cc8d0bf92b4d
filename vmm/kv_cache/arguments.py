"""Checks of a KVCache's arguments; each error names the argument and says what was expected."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from vmm.arguments import checked_number
from vmm.errors import InvalidArgument
from vmm.records import LayerShape


def checked_shapes(layers: Any, kv_heads: Any, head_dim: Any, window: Any) -> list[LayerShape]:
    checked_number("layers", layers, 1, 2**16)
    heads = _of_each_layer("kv_heads", kv_heads, layers, 1, 2**16)
    dims = _of_each_layer("head_dim", head_dim, layers, 1, 2**16)
    if not isinstance(window, Sequence):
        window = [window] * layers
    windows = _of_each_layer("window", [0 if each is None else each for each in window], layers, 0, 2**31)
    return [LayerShape(*each) for each in zip(heads, dims, windows, strict=True)]


def _of_each_layer(argument: str, given: Any, layers: int, least: int, most: int) -> list[int]:
    if not isinstance(given, int | Sequence):
        raise InvalidArgument(f"{argument} is {given!r}; expected a number, or one for each layer")
    numbers = [given] * layers if isinstance(given, int) else list(given)
    if len(numbers) != layers:
        raise InvalidArgument(f"{argument} has {len(numbers)} numbers; expected one, or {layers}")
    return [checked_number(argument, number, least, most) for number in numbers]


def int32_numbers(argument: str, array: Any) -> tuple[int, int]:
    """The address of the numbers in ``array``, and how many there are. Raises InvalidArgument for anything
    but a contiguous int32 array of one dimension on the CPU."""
    if not isinstance(array, torch.Tensor):
        array = _as_tensor(argument, array)
    if array.dtype is not torch.int32 or array.dim() != 1 or not array.is_contiguous() or not array.is_cpu:
        raise InvalidArgument(
            f"{argument} is {tuple(array.shape)} of {array.dtype} on {array.device}; expected a contiguous"
            " one-dimensional int32 array on the CPU"
        )
    return array.data_ptr(), array.numel()


def _as_tensor(argument: str, array: Any) -> torch.Tensor:
    try:
        view = memoryview(array)
    except TypeError:
        alone = ", or {sequence: length} alone" if isinstance(array, Mapping) else ""
        raise InvalidArgument(
            f"{argument} is {type(array).__name__}; expected an int32 array{alone}"
        ) from None
    if view.format != "i" or view.ndim != 1 or not view.contiguous:
        raise InvalidArgument(
            f"{argument} has items of format {view.format!r}; expected int32, one dimension"
        )
    return torch.frombuffer(view, dtype=torch.int32) if view.nbytes else torch.empty(0, dtype=torch.int32)
