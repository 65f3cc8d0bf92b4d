"""What the connector does in the scheduler's process, which never has a device context."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vmm.integrations.vllm.blocks import ElasticBlockPool, ElasticKVCacheManager
from vmm.integrations.vllm.growth import Growth
from vmm.integrations.vllm.idle import IdleWatch
from vmm.integrations.vllm.link import DirectPort, Link, Port, local_mappers
from vmm.integrations.vllm.socket_link import SocketPort, address_of
from vmm.units import format_bytes, rounded_up

if TYPE_CHECKING:
    from vllm.config import VllmConfig
    from vllm.v1.core.kv_cache_manager import KVCacheManager
    from vllm.v1.request import Request

    from vmm.integrations.vllm.layout import Layout
    from vmm.integrations.vllm.settings import Settings


class SchedulerSide:
    def __init__(self, vllm_config: VllmConfig, settings: Settings, layout: Layout, request_blocks: int) -> None:
        assert vllm_config.kv_transfer_config is not None
        self._engine = str(vllm_config.kv_transfer_config.engine_id)
        self._ranks = vllm_config.parallel_config.world_size
        self._most_running = vllm_config.scheduler_config.max_num_seqs
        self._settings, self._layout = settings, layout
        self._request_blocks = request_blocks
        self._link = Link()
        self._growth: Growth | None = None

    @property
    def growth(self) -> Growth:
        assert self._growth is not None, "bind_kv_cache_manager comes first"
        return self._growth

    def bind(self, manager: KVCacheManager) -> None:
        """Called once the workers have their memory."""
        hellos = [self._port(rank).hello for rank in range(self._ranks)]
        pool = manager.block_pool
        self._growth = Growth(
            pool,
            self._link,
            row=max(hello["row"] for hello in hellos),
            capacity=min(hello["capacity"] for hello in hellos),
        )
        self._check(self._growth.rows.capacity, hellos[0])
        ElasticBlockPool.adopt(pool, self._growth)
        ElasticKVCacheManager.adopt(manager)
        self._block_sizes = [one.block_size for one in manager.coordinator.single_type_managers]
        self._watch = IdleWatch(self._growth, self._settings.idle_seconds)
        with self._growth.lock:
            self._growth.refill()

    def _check(self, capacity: int, hello: dict[str, int]) -> None:
        needed = self._request_blocks + 1  # and the null block
        if needed <= capacity:
            return
        row, page = hello["row"], hello["page_bytes"]
        least = self._layout.bytes_of(rounded_up(needed, row), page)
        raise ValueError(
            f"kv_connector_extra_config: 'budget' is {format_bytes(hello['budget_bytes'])}, but one request of"
            f" max_model_len tokens needs {needed} blocks, which are {format_bytes(least)}; raise the budget to at"
            " least that, or lower --max-model-len"
        )

    def _port(self, rank: int) -> Port:
        mapper = local_mappers.get((self._engine, rank))
        if mapper is not None:
            return DirectPort(self._link, mapper)
        return SocketPort(self._link, address_of(self._engine, rank))

    def arrives(self, request: Request) -> None:
        growth = self.growth
        tokens = request.num_tokens + 1
        with growth.lock:
            self._watch.busy()
            blocks = sum(-(-tokens // size) for size in self._block_sizes)
            growth.arrives(request.request_id, blocks if growth.running < self._most_running else 0)

    def starts(self, request: Request) -> None:
        self.growth.starts(request.request_id)

    def leaves(self, request: Request) -> None:
        growth = self.growth
        with growth.lock:
            growth.leaves(request.request_id)
            if growth.running == 0:
                self._watch.idle()

    def step(self) -> None:
        """Called once per scheduled step."""
        growth = self.growth
        with growth.lock:
            growth.step()

    def close(self) -> None:
        if self._growth is not None:
            self._watch.close()
        self._link.close()
