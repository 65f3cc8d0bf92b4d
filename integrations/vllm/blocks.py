"""The scheduler's side: a block pool of which only blocks that have memory are free.

vLLM's own pool becomes one (its ``__class__`` is swapped), so that everybody who holds it sees the truth:
overriding methods on the instance would leave ``usage`` at 0.9 while the pool is empty.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING

from vllm.v1.core.block_pool import BlockPool

from vmm.integrations.vllm import compat
from vmm.integrations.vllm.growth import Growth

if TYPE_CHECKING:
    from vllm.v1.core.kv_cache_utils import KVCacheBlock


class ElasticBlockPool(BlockPool):
    """Blocks without memory are neither free nor used. One lock guards every change, because memory is given
    back from a thread of its own."""

    growth: Growth

    @staticmethod
    def adopt(pool: BlockPool, growth: Growth) -> None:
        compat.become(pool, ElasticBlockPool, growth=growth)

    def get_new_blocks(self, num_blocks: int) -> list[KVCacheBlock]:
        growth = self.growth
        with growth.lock:
            fresh = growth.fresh - num_blocks
            if fresh < 0:
                growth.await_fresh(num_blocks)
                fresh = max(growth.fresh - num_blocks, 0)
            growth.fresh = fresh
            # Every block of a running request comes from here, and super() costs as much as the lock.
            return BlockPool.get_new_blocks(self, num_blocks)

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
            with compat.counting_only(self, self.growth.rows.present + 1):
                done = super().reset_prefix_cache()
            if done:
                self.growth.give_back()
            return done

    def get_usage(self) -> float:
        rows = self.growth.rows
        return (rows.present - self.get_num_free_blocks()) / max(rows.capacity - 1, 1)
