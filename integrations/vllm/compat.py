"""Every touch of something that vLLM does not promise, and the versions in which each was looked at."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from vllm.config import ParallelConfig, VllmConfig
    from vllm.v1.core.block_pool import BlockPool
    from vllm.v1.core.kv_cache_utils import KVCacheBlock
    from vllm.v1.kv_cache_interface import KVCacheConfig

FIRST, LAST = (0, 31), (0, 33)


def check_version(version: str) -> None:
    """Raises RuntimeError for a vLLM that this plugin was not tested with."""
    numbers = re.match(r"(\d+)\.(\d+)", version)
    if numbers is None or not FIRST <= (int(numbers[1]), int(numbers[2])) <= LAST:
        raise RuntimeError(
            f"VmmConnector was tested with vLLM {FIRST[0]}.{FIRST[1]} to {LAST[0]}.{LAST[1]}, and this is"
            f" {version}; install one of those, or a newer kvmm: pip install --upgrade 'kvmm[vllm]'"
        )


def check_processes(parallel: ParallelConfig) -> None:
    """Raises ValueError where the scheduler cannot speak to all workers, or is not the only one."""
    if parallel.nnodes > 1:
        raise ValueError(
            f"VmmConnector: an engine on {parallel.nnodes} machines is unsupported; use one machine"
        )
    if parallel.distributed_executor_backend == "external_launcher":
        raise ValueError(
            "VmmConnector: with external_launcher each worker has a scheduler of its own, which must all"
            " decide"
            " alike, but memory does not come at the same moment everywhere; use"
            " distributed_executor_backend=mp"
        )


def is_kv_allocation(func: Any, args: Any, kwargs: dict[str, Any]) -> bool:
    """Whether this call is the one of v1/worker/utils.py, allocate_kv_cache:
    ``torch.zeros(size, dtype=torch.int8, device=device)``."""
    return (
        func is torch.zeros
        and len(args) == 1
        and isinstance(args[0], int)
        and kwargs.get("dtype") is torch.int8
        and set(kwargs) == {"dtype", "device"}
    )


def is_free(block: KVCacheBlock) -> bool:
    """Whether the block is in the free queue, which links its members."""
    return block.prev_free_block is not None


def take_all_free(pool: BlockPool) -> list[KVCacheBlock]:
    return pool.free_block_queue.popleft_n(pool.free_block_queue.num_free_blocks)


def take_free(pool: BlockPool, block: KVCacheBlock) -> None:
    """Takes a free block out of the queue and forgets what is cached in it."""
    pool.free_block_queue.remove(block)
    if pool._reuse_watchers:
        pool._notify_reuse([block])
    if pool.enable_caching:
        pool._maybe_evict_cached_block(block)


def put_first(pool: BlockPool, blocks: list[KVCacheBlock]) -> None:
    """The blocks are used next, before anything cached is evicted."""
    pool.free_block_queue.prepend_n(blocks)


def from_the_front(pool: BlockPool) -> Iterator[KVCacheBlock]:
    """The free blocks in the order in which they will be used."""
    queue = pool.free_block_queue
    block = queue.fake_free_list_head.next_free_block
    while block is not None and block is not queue.fake_free_list_tail:
        yield block
        block = block.next_free_block


def blocks_of_a_request(vllm_config: VllmConfig, config: KVCacheConfig) -> int:
    """How many blocks one request of max_model_len tokens needs at most."""
    return sum(
        -(-group.kv_cache_spec.max_memory_usage_bytes(vllm_config) // group.kv_cache_spec.page_size_bytes)
        for group in config.kv_cache_groups
    )
