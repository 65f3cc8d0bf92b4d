"""The attention of one layer, by every kernel that torch has for it.

All take q ``[batch, queries, q_heads, dim]`` and k, v ``[batch, context, kv_heads, dim]``, views with any
strides but a contiguous last dimension, and return ``[batch, queries, q_heads, dim]``.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

Kernel = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]
flash_forward: Callable = torch.ops.aten._flash_attention_forward


def _sdpa(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    heads_first = (each.transpose(1, 2) for each in (q, k, v))
    causal = q.shape[1] > 1
    return scaled_dot_product_attention(*heads_first, is_causal=causal, enable_gqa=True).transpose(1, 2)


def sdpa(backend: SDPBackend | None) -> Kernel:
    """torch's own attention, by one backend only; None is whichever torch chooses."""
    if backend is None:
        return _sdpa

    def run_by_backend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        with sdpa_kernel(backend):
            return _sdpa(q, k, v)

    return run_by_backend


@functools.lru_cache(maxsize=16)
def _starts(count: int, length: int, device: torch.device) -> torch.Tensor:
    return torch.arange(0, (count + 1) * length, length, dtype=torch.int32, device=device)


@functools.lru_cache(maxsize=16)
def _all_used(count: int, length: int, device: torch.device) -> torch.Tensor:
    return torch.full((count,), length, dtype=torch.int32, device=device)


def seqused(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """Slots of one long tensor, by where they start and how much of each is used: no copy, whatever the
    lengths. All of ``context`` is used here."""
    return seqused_lengths(q, k, v, _all_used(k.shape[0], k.shape[1], q.device))


def seqused_lengths(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, used: torch.Tensor) -> torch.Tensor:
    """``used`` (int32) tokens of each sequence."""
    batch, queries, heads, dim = q.shape
    context = k.shape[1]
    out = flash_forward(
        q.reshape(batch * queries, heads, dim),
        k.flatten(0, 1),
        v.flatten(0, 1),
        _starts(batch, queries, q.device),
        _starts(batch, context, q.device),
        queries,
        context,
        0.0,
        queries > 1,  # causal
        False,
        seqused_k=used,
    )[0]
    return out.view(batch, queries, heads, dim)


def reference(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """In float32, head by head."""
    group = q.shape[2] // k.shape[2]
    out = torch.empty(q.shape, dtype=torch.float32, device=q.device)
    for head in range(q.shape[2]):
        keys, values = k[:, :, head // group].float(), v[:, :, head // group].float()
        scores = q[:, :, head].float() @ keys.transpose(1, 2) * q.shape[3] ** -0.5
        if q.shape[1] > 1:
            hidden = torch.ones(scores.shape[1:], dtype=torch.bool, device=q.device).triu(1)
            scores.masked_fill_(hidden, float("-inf"))
        out[:, :, head] = scores.softmax(-1) @ values
    return out


def relative_error(out: torch.Tensor, expected: torch.Tensor) -> float:
    """Of the norms; NaN where either has one."""
    expected = expected.float()
    return float((out.float() - expected).norm() / expected.norm())


class Mismatch(AssertionError):
    """Attention over some memory gives another result."""


def require_close(what: str, out: torch.Tensor, expected: torch.Tensor, most: float) -> None:
    """Raises Mismatch; NaN is never close."""
    error = relative_error(out, expected)
    if not error <= most:
        raise Mismatch(f"{what}: relative error {error:.3g}, expected at most {most:g}")
