"""What the connector does in the scheduler's process, which never has a device context."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vmm.integrations.vllm.blocks import ElasticBlockPool, ElasticKVCacheManager
from vmm.integrations.vllm.growth import Growth
from vmm.integrations.vllm.link import DirectPort, Link, local_mappers

if TYPE_CHECKING:
    from vllm.config import VllmConfig
    from vllm.v1.core.kv_cache_manager import KVCacheManager
    from vllm.v1.request import Request

    from vmm.integrations.vllm.layout import Layout
    from vmm.integrations.vllm.settings import Settings


class SchedulerSide:
    def __init__(self, vllm_config: VllmConfig, settings: Settings, layout: Layout) -> None:
        assert vllm_config.kv_transfer_config is not None
        self._engine = str(vllm_config.kv_transfer_config.engine_id)
        self._ranks = vllm_config.parallel_config.world_size
        self._most_running = vllm_config.scheduler_config.max_num_seqs
        self._settings = settings
        self._link = Link()
        self._growth: Growth | None = None

    @property
    def growth(self) -> Growth:
        assert self._growth is not None, "bind_kv_cache_manager comes first"
        return self._growth

    def bind(self, manager: KVCacheManager) -> None:
        """Called once the workers have their memory."""
        rows, capacities = [], []
        for rank in range(self._ranks):
            mapper = local_mappers[self._engine, rank]
            DirectPort(self._link, mapper)
            rows.append(mapper.memory.row)
            capacities.append(mapper.memory.capacity)
        pool = manager.block_pool
        self._growth = Growth(
            pool,
            self._link,
            row=max(rows),
            capacity=min(capacities),
            idle_seconds=self._settings.idle_seconds,
        )
        ElasticBlockPool.adopt(pool, self._growth)
        ElasticKVCacheManager.adopt(manager)
        self._block_sizes = [one.block_size for one in manager.coordinator.single_type_managers]
        with self._growth.lock:
            self._growth.refill()

    def arrives(self, request: Request) -> None:
        growth = self.growth
        tokens = request.num_tokens + 1
        with growth.lock:
            blocks = sum(-(-tokens // size) for size in self._block_sizes)
            growth.arrives(request.request_id, blocks if growth.running < self._most_running else 0)

    def starts(self, request: Request) -> None:
        self.growth.starts(request.request_id)

    def leaves(self, request: Request) -> None:
        growth = self.growth
        with growth.lock:
            growth.leaves(request.request_id)

    def step(self) -> None:
        """Called once per scheduled step."""
        growth = self.growth
        with growth.lock:
            growth.refill()

    def close(self) -> None:
        if self._growth is not None:
            self._growth.close()
        self._link.close()
