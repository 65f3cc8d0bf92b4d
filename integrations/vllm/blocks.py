"""The scheduler's side: a block pool of which only blocks that have memory are free.

The objects that vLLM made become these classes (``__class__`` is swapped), so that everybody who holds them
sees the truth: overriding methods on the instance would leave ``usage`` at 0.9 while the pool is empty."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

from vllm.v1.core.block_pool import BlockPool
from vllm.v1.core.kv_cache_manager import KVCacheBlocks, KVCacheManager
from vllm.v1.request import Request, RequestStatus

from vmm.integrations.vllm.growth import Growth

if TYPE_CHECKING:
    from vllm.v1.core.kv_cache_utils import KVCacheBlock


class ElasticBlockPool(BlockPool):
    """Blocks without memory are neither free nor used. One lock guards every change, because memory is given
    back from a thread of its own."""

    growth: Growth

    @staticmethod
    def adopt(pool: BlockPool, growth: Growth) -> None:
        pool.__class__ = ElasticBlockPool
        pool.growth = growth  # type: ignore[attr-defined]

    def get_new_blocks(self, num_blocks: int) -> list[KVCacheBlock]:
        growth = self.growth
        with growth.lock:
            if growth.fresh < num_blocks:
                growth.await_fresh(num_blocks)
            growth.fresh = max(growth.fresh - num_blocks, 0)
            return super().get_new_blocks(num_blocks)

    def touch(self, blocks: Sequence[KVCacheBlock]) -> None:
        with self.growth.lock:
            super().touch(blocks)

    def free_blocks(self, ordered_blocks: Iterable[KVCacheBlock]) -> None:
        blocks = list(ordered_blocks)
        with self.growth.lock:
            self.growth.freed(blocks)
            super().free_blocks(blocks)

    def unpin_blocks(self, blocks: Iterable[KVCacheBlock], on_reuse: Callable[[KVCacheBlock], None]) -> None:
        with self.growth.lock:
            super().unpin_blocks(blocks, on_reuse)

    def evict_blocks(self, block_ids: set[int]) -> None:
        with self.growth.lock:
            super().evict_blocks(block_ids)

    def reset_prefix_cache(self) -> bool:
        with self.growth.lock:
            self.growth.collect()
            # vLLM compares the blocks that there are with those that are free; here these are those present.
            every, self.num_gpu_blocks = self.num_gpu_blocks, self.growth.rows.present + 1
            try:
                done = super().reset_prefix_cache()
            finally:
                self.num_gpu_blocks = every
            if done:
                self.growth.give_back()
            return done

    def get_usage(self) -> float:
        rows = self.growth.rows
        return (rows.present - self.get_num_free_blocks()) / max(rows.capacity - 1, 1)


class ElasticKVCacheManager(KVCacheManager):
    """Where stock has no room, it grows: at once for a request that runs (which would be preempted) and where
    nothing runs; ahead for others, which wait."""

    @staticmethod
    def adopt(manager: KVCacheManager) -> None:
        manager.__class__ = ElasticKVCacheManager

    def allocate_slots(
        self, request: Request, num_new_tokens: int, *args: Any, **kwargs: Any
    ) -> KVCacheBlocks | None:
        blocks = super().allocate_slots(request, num_new_tokens, *args, **kwargs)
        if blocks is not None:
            return blocks
        growth: Growth = self.block_pool.growth
        with growth.lock:
            seen = self.block_pool.get_num_free_blocks()
            growth.collect()
            came = self.block_pool.get_num_free_blocks() > seen
        if came and (blocks := super().allocate_slots(request, num_new_tokens, *args, **kwargs)) is not None:
            return blocks  # nothing need be asked for, and nobody be preempted
        needed = self._most_blocks(request, num_new_tokens) + int(kwargs.get("reserved_blocks", 0))
        with growth.lock:
            free = self.block_pool.get_num_free_blocks()
            others_run = growth.rows.present > free
            if request.status != RequestStatus.RUNNING and others_run:
                growth.expect(needed - free)
                return None
            growth.await_free(needed)
            if self.block_pool.get_num_free_blocks() == free:
                if not others_run:
                    growth.pause()
                return None
        return super().allocate_slots(request, num_new_tokens, *args, **kwargs)

    def _most_blocks(self, request: Request, num_new_tokens: int) -> int:
        """The free blocks with which stock cannot refuse this request."""
        tokens = min(
            max(request.num_tokens, request.num_computed_tokens + num_new_tokens) + 64, self.max_model_len
        )
        held = self.get_block_ids(request.request_id)
        return self.watermark_blocks + sum(
            max(-(-tokens // manager.block_size) - len(mine), 1)
            for manager, mine in zip(self.coordinator.single_type_managers, held, strict=True)
        )
