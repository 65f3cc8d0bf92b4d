"""Decoding with a block table, in Triton: the paged peer, and the same kernel without a table.

Simple and correct, not the fastest there is. The keys of a sequence are cut into splits; a program attends
from the queries of one key head to one split, and a second kernel merges the splits. With a table token n is
in block ``table[n // BLOCK]`` of the cache; without one it is n tokens into the sequence. Nothing else
differs, so that the two times tell what the table costs.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from vmm.benchmarks.attention_shapes import BLOCK_TOKENS

_STEP = 64  # tokens at a time
_ROWS = 16  # queries of a key head, padded: the least that tl.dot takes
_PROGRAMS_EACH = 2  # for every multiprocessor
_MOST_SPLITS = 64


@triton.jit
def _attend(  # noqa: PLR0917
    q, k, v, table, part, peaks, sums, scale, context, split_tokens,
    k_outer, k_token, k_head, v_outer, v_token, v_head,
    GROUP: tl.constexpr, DIM: tl.constexpr, ROWS: tl.constexpr, STEP: tl.constexpr,
    BLOCK: tl.constexpr, PAGED: tl.constexpr,
):  # fmt: skip
    """``k_outer`` is the stride of a sequence or, with a table, of a block; strides in elements."""
    sequence = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1).to(tl.int64)
    split = tl.program_id(2)
    heads, splits = tl.num_programs(1), tl.num_programs(2)
    rows = tl.arange(0, ROWS)
    dims = tl.arange(0, DIM)
    is_query = rows < GROUP
    queries = (sequence * heads + head) * GROUP + rows
    query = tl.load(q + queries[:, None] * DIM + dims[None, :], mask=is_query[:, None], other=0.0)
    peak = tl.full((ROWS,), float("-inf"), tl.float32)
    total = tl.zeros((ROWS,), tl.float32)
    out = tl.zeros((ROWS, DIM), tl.float32)
    first = split * split_tokens
    last = tl.minimum(first + split_tokens, context)
    for start in range(first, last, STEP):
        tokens = start + tl.arange(0, STEP)
        inside = tokens < last
        if PAGED:
            blocks = tl.load(table + sequence * (context // BLOCK) + tokens // BLOCK, mask=inside, other=0)
            outer, inner = blocks.to(tl.int64), (tokens % BLOCK).to(tl.int64)
        else:
            outer, inner = sequence, tokens.to(tl.int64)
        k_at = outer * k_outer + inner * k_token + head * k_head
        v_at = outer * v_outer + inner * v_token + head * v_head
        keys = tl.load(k + k_at[:, None] + dims[None, :], mask=inside[:, None], other=0.0)
        scores = tl.dot(query, tl.trans(keys)).to(tl.float32) * scale
        scores = tl.where(inside[None, :], scores, float("-inf"))
        higher = tl.maximum(peak, tl.max(scores, 1))
        weights = tl.exp(scores - higher[:, None])
        shrink = tl.exp(peak - higher)
        values = tl.load(v + v_at[:, None] + dims[None, :], mask=inside[:, None], other=0.0)
        out = out * shrink[:, None] + tl.dot(weights.to(values.dtype), values).to(tl.float32)
        total = total * shrink + tl.sum(weights, 1)
        peak = higher
    at = ((sequence * heads + head) * splits + split) * ROWS + rows
    tl.store(part + at[:, None] * DIM + dims[None, :], out)
    tl.store(peaks + at, peak)
    tl.store(sums + at, total)


@triton.jit
def _merge(  # noqa: PLR0917
    part, peaks, sums, merged, splits,
    GROUP: tl.constexpr, DIM: tl.constexpr, ROWS: tl.constexpr, MOST: tl.constexpr,
):  # fmt: skip
    """One query: the splits' outputs, each by its share of the exponentials' sum."""
    sequence_and_head = tl.program_id(0).to(tl.int64)
    row = tl.program_id(1)
    each = tl.arange(0, MOST)
    dims = tl.arange(0, DIM)
    at = (sequence_and_head * splits + each) * ROWS + row
    there = each < splits
    peak = tl.load(peaks + at, mask=there, other=float("-inf"))
    share = tl.exp(peak - tl.max(peak, 0))
    total = tl.sum(share * tl.load(sums + at, mask=there, other=0.0), 0)
    outs = tl.load(part + at[:, None] * DIM + dims[None, :], mask=there[:, None], other=0.0)
    out = tl.sum(outs * share[:, None], 0) / total
    query = sequence_and_head * GROUP + row
    tl.store(merged + query * DIM + dims, out.to(merged.dtype.element_ty))


def _split(batch: int, kv_heads: int, context: int, device: torch.device) -> tuple[int, int]:
    """Splits, and the tokens of each: enough programs for the GPU, and no split without a token."""
    processors = (
        torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 4
    )
    wanted = -(-_PROGRAMS_EACH * processors // (batch * kv_heads))
    tokens = max(_STEP, -(-context // min(_MOST_SPLITS, wanted)))
    tokens = -(-tokens // _STEP) * _STEP
    return -(-context // tokens), tokens


def decode(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, table: torch.Tensor | None = None, context: int = 0
) -> torch.Tensor:
    """q ``[batch, 1, q_heads, dim]``, contiguous; k, v ``[batch, context, kv_heads, dim]`` or, with ``table``
    (int32 ``[batch, context // BLOCK_TOKENS]``), ``[blocks, BLOCK_TOKENS, kv_heads, dim]``."""
    batch, _, q_heads, dim = q.shape
    kv_heads = k.shape[2]
    context = context if table is not None else k.shape[1]
    splits, split_tokens = _split(batch, kv_heads, context, q.device)
    part = torch.empty(batch, kv_heads, splits, _ROWS, dim, dtype=torch.float32, device=q.device)
    peaks, sums = (torch.empty(part.shape[:-1], dtype=torch.float32, device=q.device) for _ in range(2))
    group = q_heads // kv_heads
    _attend[batch, kv_heads, splits](
        q, k, v, k if table is None else table, part, peaks, sums, dim**-0.5, context, split_tokens,
        *k.stride()[:3], *v.stride()[:3],
        GROUP=group, DIM=dim, ROWS=_ROWS, STEP=_STEP, BLOCK=BLOCK_TOKENS, PAGED=table is not None,
    )  # fmt: skip
    out = torch.empty_like(q)
    _merge[batch * kv_heads, group](
        part, peaks, sums, out, splits, GROUP=group, DIM=dim, ROWS=_ROWS, MOST=_MOST_SPLITS
    )
    return out
