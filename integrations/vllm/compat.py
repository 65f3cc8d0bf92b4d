"""Every touch of something that vLLM does not promise, and the versions in which each was looked at."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal

import torch

if TYPE_CHECKING:
    from vllm.config import ParallelConfig, VllmConfig
    from vllm.distributed.kv_transfer.kv_connector.v1.metrics import KVConnectorPromMetrics
    from vllm.v1.core.block_pool import BlockPool
    from vllm.v1.core.kv_cache_manager import KVCacheManager
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


def make_known(name: str, module: str) -> None:
    """Lets vLLM find a connector by its name. Does nothing when it knows the name already."""
    from vllm.distributed.kv_transfer.kv_connector.factory import KVConnectorFactory

    if name not in KVConnectorFactory._registry:
        KVConnectorFactory.register_connector(name, module, name)


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


def become(pool: BlockPool, kind: type[BlockPool], **attributes: Any) -> None:
    """Makes the pool one of this subclass, with these attributes, for everybody who holds it."""
    pool.__class__ = kind
    vars(pool).update(attributes)


def blocks_of(pool: BlockPool, ids: Iterable[int]) -> list[KVCacheBlock]:
    return [pool.blocks[block] for block in ids]


def is_cached(block: KVCacheBlock) -> bool:
    """Whether the prefix cache may find something in it."""
    return block.block_hash is not None


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


@contextmanager
def counting_only(pool: BlockPool, blocks: int) -> Iterator[None]:
    """While this is open, the pool takes so many blocks for all that there are."""
    every, pool.num_gpu_blocks = pool.num_gpu_blocks, blocks
    try:
        yield
    finally:
        pool.num_gpu_blocks = every


def limit_watermark(manager: KVCacheManager, blocks: int) -> int:
    """vLLM leaves some blocks free when it starts a request: a part of all blocks, of which most have no
    memory here. From now on it is that part of ``blocks``. Returns how many that are."""
    manager.watermark_blocks = manager.watermark_blocks * blocks // manager.block_pool.num_gpu_blocks
    return manager.watermark_blocks


def block_tokens(manager: KVCacheManager) -> list[int]:
    """The tokens of a block in each group of layers."""
    return [group.block_size for group in manager.coordinator.single_type_managers]


def labelled(
    metrics: KVConnectorPromMetrics, kind: Literal["gauge", "counter"], name: str, text: str
) -> dict[int, Any]:
    """A new metric with vLLM's labels, for each engine by its number."""
    made = metrics._gauge_cls if kind == "gauge" else metrics._counter_cls
    metric = made(name=name, documentation=text, labelnames=metrics._labelnames)
    return {engine: metric.labels(*values) for engine, values in metrics.per_engine_labelvalues.items()}


def blocks_of_a_request(vllm_config: VllmConfig, config: KVCacheConfig) -> int:
    """How many blocks one request of max_model_len tokens needs at most."""
    return sum(
        -(-group.kv_cache_spec.max_memory_usage_bytes(vllm_config) // group.kv_cache_spec.page_size_bytes)
        for group in config.kv_cache_groups
    )


# ---- A worker on a GPU, where a kernel faults at an address without memory
#
# Two places of vLLM lead kernels to blocks that were never confirmed, or are not any more:
#
# - The V2 runner's warm-up writes blocks 1 to about max_num_seqs times the groups, before there is a
#   scheduler. A switch of vLLM, for its elastic expert parallelism, sends these writes to the null block.
# - The V2 runner's gather writes only as many entries of a block table's row as the request has blocks, and
#   leaves the ids of earlier requests behind them. FlashAttention 2 may look at these (vllm#42494).


def prepare_gpu_runner(vllm_config: VllmConfig) -> None:
    """Call it before the warm-up. Raises ValueError for a model runner that this was not written for."""
    from vllm.v1.worker.gpu.block_table import BlockTables

    if not vllm_config.use_v2_model_runner or not hasattr(BlockTables, "redirect_writes_to_null_block"):
        raise ValueError(
            "VmmConnector: on a GPU it needs vLLM's V2 model runner, because it knows of no other which"
            " blocks its kernels touch; unset VLLM_USE_V2_MODEL_RUNNER, or use a model that this runner"
            " supports"
        )
    BlockTables.redirect_writes_to_null_block = True
    _clear_tails(BlockTables)


def gpu_runner_is_warm() -> None:
    """Call it before the first step that a scheduler has planned."""
    from vllm.v1.worker.gpu.block_table import BlockTables

    BlockTables.redirect_writes_to_null_block = False


def _clear_tails(tables: Any) -> None:
    """Lets every gather begin with rows of null blocks."""
    gather = tables.gather_block_tables
    if hasattr(gather, "of_vmm"):
        return

    def gather_cleared(self: Any, idx_mapping: Any, num_reqs_padded: int, *more: Any, **named: Any) -> Any:
        out = named.get("out", more[0] if more else None)
        for table in self.input_block_tables if out is None else out:
            table[:num_reqs_padded].zero_()
        return gather(self, idx_mapping, num_reqs_padded, *more, **named)

    gather_cleared.of_vmm = True  # type: ignore[attr-defined]
    tables.gather_block_tables = gather_cleared
