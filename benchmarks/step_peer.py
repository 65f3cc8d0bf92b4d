"""What ``vmm bench step`` compares with: the block manager of vLLM, for as many decoding sequences.

vLLM asks its manager, sequence by sequence, for the slot of the next token. That is timed on its own: no
engine, no scheduler, no model and no GPU.
"""

from __future__ import annotations

import random
from importlib.util import find_spec
from time import perf_counter
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vllm.v1.core.kv_cache_manager import KVCacheManager
    from vllm.v1.request import Request

LAYERS, KV_HEADS, HEAD_SIZE = 32, 8, 128
BLOCK_TOKENS = 16
LEAST_BLOCKS = 40_000
PROMPT_TOKENS = (500, 1500)  # the fewest and the most
SEED = 0


def vllm_allocate_slots(sequences: int, steps: int) -> list[float] | None:
    """Seconds of each of ``steps`` iterations in which ``sequences`` requests decode one token each.

    Only the calls of ``allocate_slots`` count, prefix caching is off, and each request's prompt of 500 to
    1,500 tokens has its blocks before the first iteration. None where vLLM is not installed.
    """
    found = find_spec("vllm")
    if found is None or found.origin is None:  # without an origin it is some folder that has that name
        return None
    manager = block_manager(sequences, PROMPT_TOKENS[1] + steps)
    requests = prefilled(manager, sequences, steps)
    seconds = []
    for _ in range(steps):
        start = perf_counter()
        for request in requests:
            manager.allocate_slots(request, 1)
        seconds.append(perf_counter() - start)
        for request in requests:
            request.num_computed_tokens += 1
            request.append_output_token_ids(0)
    check(manager, requests)
    return seconds


def block_manager(sequences: int, tokens: int) -> KVCacheManager:
    """With blocks for ``tokens`` of every sequence, so that no allocation fails."""
    import torch
    from vllm.v1.core.kv_cache_manager import KVCacheManager
    from vllm.v1.kv_cache_interface import FullAttentionSpec, KVCacheConfig, KVCacheGroupSpec

    spec = FullAttentionSpec(
        block_size=BLOCK_TOKENS, num_kv_heads=KV_HEADS, head_size=HEAD_SIZE, dtype=torch.bfloat16
    )
    group = KVCacheGroupSpec([f"layers.{layer}" for layer in range(LAYERS)], spec)
    blocks = max(LEAST_BLOCKS, sequences * _blocks(tokens) + 1)  # vLLM keeps one for itself
    return KVCacheManager(
        KVCacheConfig(num_blocks=blocks, kv_cache_tensors=[], kv_cache_groups=[group]),
        max_model_len=tokens,
        scheduler_block_size=BLOCK_TOKENS,
        hash_block_size=BLOCK_TOKENS,
        enable_caching=False,
    )


def prefilled(manager: KVCacheManager, sequences: int, steps: int) -> list[Request]:
    """Requests as they are after their prompt: it has its blocks, and the first token has been sampled."""
    from vllm.sampling_params import SamplingParams
    from vllm.v1.request import Request, RequestStatus

    lengths = random.Random(SEED)
    sampling = SamplingParams(max_tokens=steps + 1)
    requests = []
    for number in range(sequences):
        tokens = lengths.randint(*PROMPT_TOKENS)
        request = Request(str(number), [0] * tokens, sampling, None)
        manager.allocate_slots(request, tokens)
        request.status = RequestStatus.RUNNING
        request.num_computed_tokens = tokens
        request.append_output_token_ids(0)
        requests.append(request)
    return requests


def check(manager: KVCacheManager, requests: list[Request]) -> None:
    """Raises RuntimeError if an allocation failed, which the timed loop does not look at."""
    for request in requests:
        (held,) = manager.get_block_ids(request.request_id)
        if len(held) != (due := _blocks(request.num_computed_tokens)):
            raise RuntimeError(f"request {request.request_id} has {len(held)} blocks, not {due}")


def _blocks(tokens: int) -> int:
    """That hold ``tokens``."""
    return -(-tokens // BLOCK_TOKENS)
