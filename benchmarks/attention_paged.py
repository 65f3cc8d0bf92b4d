"""Decoding over K and V in blocks of 16 tokens and a block table: how the paged peer is attended to."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable

import torch

from vmm.benchmarks.attention_kernels import reference

Paged = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, "torch.Tensor | None", int], torch.Tensor]
"""Of q, k, v, table and context, as attention_triton.decode; without a table k and v are contiguous."""


def paged_kernel(device: str) -> tuple[Paged | None, str]:
    """The kernel, if there is one, and what it is."""
    if device == "cpu":
        return gathered, "a gather and float32 arithmetic"
    if importlib.util.find_spec("triton") is None:
        return None, "none: no triton"
    from vmm.benchmarks.attention_triton import decode

    return decode, "our own Triton kernel, split over the context; a simple one"


def gathered(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, table: torch.Tensor | None, context: int
) -> torch.Tensor:
    if table is not None:
        batch, _, heads, dim = *q.shape[:1], 0, *k.shape[2:]
        k, v = (each[table.long()].view(batch, context, heads, dim) for each in (k, v))
    return reference(q, k, v).to(q.dtype)
