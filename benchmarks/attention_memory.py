"""The same K and V in memory of every kind that the attention benchmark compares."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from vmm.benchmarks.attention_shapes import ALL, BLOCK_TOKENS, GROUPS, ITEM_BYTES, Model
from vmm.dlpack import tensor_over
from vmm.kv_tensor import KVTensor
from vmm.pool import Pool
from vmm.units import rounded_up

DTYPE = torch.bfloat16


@dataclass
class Held:
    """``layers``: (K, V) of each measured layer, each ``[tokens, kv_heads, dim]`` with strides of its own.
    ``close`` gives the memory back."""

    layers: list[tuple[torch.Tensor, torch.Tensor]]
    close: Callable[[], None]


def _in_record(model: Model, group: str) -> int:
    return model.layers if GROUPS[group] == ALL else GROUPS[group]


def stock(model: Model, layers: int, tokens: int, device: str) -> Held:
    """torch.empty, a tensor for each layer's K and V, filled with random values: the source of all others."""
    made = [
        tuple(torch.empty(tokens, model.kv_heads, model.dim, dtype=DTYPE, device=device) for _ in "KV")
        for _ in range(layers)
    ]
    for pair in made:
        for tensor in pair:
            tensor.normal_()
    return Held(made, made.clear)  # type: ignore[arg-type]


def kv_tensors(pool: Pool, source: Held, page_bytes: int) -> Held:
    """KVTensors of torch.empty's shape and strides: what only the mapping costs."""
    tokens, heads, dim = source.layers[0][0].shape
    tensors: list[KVTensor] = []
    layers = []
    for _ in source.layers:
        made = [KVTensor(1, tokens, heads, dim, dtype=DTYPE, pool=pool, page_bytes=page_bytes) for _ in "KV"]
        tensors += made
        layers.append(tuple(each[0, :tokens] for each in made))
    held = Held(layers, lambda: _close(tensors, layers))  # type: ignore[arg-type]
    _fill(held, source)
    return held


def _close(tensors: list[KVTensor], layers: list) -> None:
    layers.clear()  # slices keep their pages
    for tensor in tensors:
        tensor.close()
    tensors.clear()


def record_tensors(pool: Pool, source: Held, model: Model, group: str, page_bytes: int) -> Held:
    """Records ``[GROUPS[group], K|V, kv_heads, dim]``, one for each token, in an extent for each group of
    layers: the stride of a token is the whole record."""
    tokens, heads, dim = source.layers[0][0].shape
    in_record = _in_record(model, group)
    extents = -(-len(source.layers) // in_record)
    extent_bytes = rounded_up(tokens * model.record_bytes(in_record), page_bytes)
    lease = pool._core.reserve(page_bytes=page_bytes, extent_bytes=extent_bytes, extents=extents)
    lease.map([(0, extents * extent_bytes // page_bytes)])

    def part(layer: int, which: int) -> torch.Tensor:
        extent, position = divmod(layer, in_record)
        elements = (2 * position + which) * heads * dim
        return tensor_over(
            lease,
            DTYPE,
            shape=(tokens, heads, dim),
            strides=(in_record * 2 * heads * dim, dim, 1),
            offset_bytes=extent * extent_bytes + elements * ITEM_BYTES,
        )

    layers = [(part(layer, 0), part(layer, 1)) for layer in range(len(source.layers))]
    held = Held(layers, layers.clear)
    _fill(held, source)
    return held


def paged(source: Held) -> tuple[Held, torch.Tensor]:
    """Blocks ``[blocks, BLOCK_TOKENS, kv_heads, dim]`` in random order, and where each block went (int32)."""
    tokens, heads, dim = source.layers[0][0].shape
    blocks = tokens // BLOCK_TOKENS
    device = source.layers[0][0].device
    table = torch.randperm(blocks, dtype=torch.int32, device=device)
    layers = []
    for pair in source.layers:
        scattered = []
        for tensor in pair:
            made = torch.empty(blocks, BLOCK_TOKENS, heads, dim, dtype=DTYPE, device=device)
            made[table.long()] = tensor[: blocks * BLOCK_TOKENS].view_as(made)
            scattered.append(made)
        layers.append(tuple(scattered))
    return Held(layers, layers.clear), table  # type: ignore[arg-type]


def pool_bytes(model: Model, layers: int, tokens: int, page_bytes: int) -> int:
    """What a pool needs for kv_tensors and record_tensors of every group, with pages begun and runs."""
    needed = 2 * layers * rounded_up(tokens * model.record_bytes(1) // 2, page_bytes)
    for group in GROUPS:
        in_record = _in_record(model, group)
        extents = -(-layers // in_record)
        needed += extents * rounded_up(tokens * model.record_bytes(in_record), page_bytes)
    return needed + needed // 64 + 16 * page_bytes


def _fill(held: Held, source: Held) -> None:
    for ours, theirs in zip(held.layers, source.layers, strict=True):
        for target, values in zip(ours, theirs, strict=True):
            target.copy_(values)
