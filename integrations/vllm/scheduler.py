"""What the connector does in the scheduler's process, which never has a device context."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from vmm.integrations.vllm import compat
from vmm.integrations.vllm.blocks import ElasticBlockPool
from vmm.integrations.vllm.growth import Growth
from vmm.integrations.vllm.idle import IdleWatch
from vmm.integrations.vllm.link import DirectPort, Link, Port, local_mappers
from vmm.integrations.vllm.socket_link import SocketPort, address_of
from vmm.integrations.vllm.stats import GAUGES, VmmStats
from vmm.units import format_bytes, rounded_up

if TYPE_CHECKING:
    from vllm.config import VllmConfig
    from vllm.v1.core.kv_cache_manager import KVCacheManager
    from vllm.v1.request import Request

    from vmm.integrations.vllm.layout import Layout
    from vmm.integrations.vllm.settings import Settings

_STATS_EVERY_S = 0.1


class SchedulerSide:
    def __init__(
        self, vllm_config: VllmConfig, settings: Settings, layout: Layout, request_blocks: int
    ) -> None:
        assert vllm_config.kv_transfer_config is not None
        self._engine = str(vllm_config.kv_transfer_config.engine_id)
        self._ranks = vllm_config.parallel_config.world_size
        self._most_running = vllm_config.scheduler_config.max_num_seqs
        self._lookahead = 1 + vllm_config.num_speculative_tokens + vllm_config.num_lookahead_tokens
        self._settings, self._layout = settings, layout
        self._request_blocks = request_blocks
        self._link = Link()
        self._growth: Growth | None = None
        self._stats_at = 0.0
        self._counted: dict[str, int] = {}

    @property
    def growth(self) -> Growth:
        assert self._growth is not None, "bind_kv_cache_manager comes first"
        return self._growth

    def bind(self, manager: KVCacheManager) -> None:
        """Called once the workers have their memory."""
        hellos = [self._port(rank).hello for rank in range(self._ranks)]
        row = max(hello["row"] for hello in hellos)
        self._check(row, hellos)
        self._block_sizes = compat.block_tokens(manager)
        self._pool = manager.block_pool
        self._growth = Growth(
            self._pool,
            self._link,
            row=row,
            capacity=min(hello["capacity"] for hello in hellos),
            groups=len(self._block_sizes),
            shrinks=all(hello["shrinks"] for hello in hellos),
        )
        ElasticBlockPool.adopt(self._pool, self._growth)
        self._growth.reserve = compat.limit_watermark(manager, self._growth.rows.capacity)
        self._watch = IdleWatch(self._growth, self._settings.idle_seconds)
        self._block_bytes = [hello["block_bytes"] for hello in hellos]
        self._link.on_pressure = lambda size: self._watch.press(-(-size // min(self._block_bytes)))
        with self._growth.lock:
            self._growth.refill()

    def _check(self, row: int, hellos: list[dict[str, Any]]) -> None:
        """Raises ValueError where not even one request would find its memory."""
        needed = rounded_up(self._request_blocks + 1, row)  # and the null block
        for hello in hellos:
            least, has = self._layout.bytes_of(needed, hello["page_bytes"]), hello["assured_bytes"]
            if least > has:
                raise ValueError(
                    f"kv_connector_extra_config: {'minimum' if hello['shared'] else 'budget'!r} is"
                    f" {format_bytes(has)}, but one request of max_model_len tokens needs {needed} blocks,"
                    f" which are {format_bytes(least)}; raise it to at least that, or lower --max-model-len"
                )

    def _port(self, rank: int) -> Port:
        mapper = local_mappers.get((self._engine, rank))
        if mapper is not None:
            return DirectPort(self._link, mapper)
        return SocketPort(self._link, address_of(self._engine, rank))

    def arrives(self, request: Request) -> None:
        growth = self.growth
        with growth.lock:
            self._watch.busy()
            can_start = growth.running < self._most_running
            growth.arrives(request.request_id, self._blocks_of(request) if can_start else 0)

    def wanted(self, request: Request) -> None:
        """The scheduler looks at a waiting request, which it will start if there are blocks."""
        growth = self.growth
        with growth.lock:
            growth.wanted(request.request_id, self._blocks_of(request))

    def _blocks_of(self, request: Request) -> int:
        tokens = request.num_tokens + self._lookahead
        return sum(-(-tokens // size) for size in self._block_sizes)

    def rescue(self) -> bool:
        growth = self.growth
        with growth.lock:
            return growth.rescue()

    def starts(self, request: Request) -> None:
        growth = self.growth
        with growth.lock:
            growth.starts(request.request_id)

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

    def stats(self) -> VmmStats | None:
        """What has changed; but not with every step, unless it may be the last for long."""
        growth, now = self.growth, time.monotonic()
        if growth.running and now < self._stats_at:
            return None
        self._stats_at = now + _STATS_EVERY_S
        used = growth.rows.present - self._pool.get_num_free_blocks()
        figures = self._link.figures
        data = {name: sum(one.get(name, 0) for one in figures) for name in GAUGES}
        data["live_bytes"] = used * sum(self._block_bytes)
        for name, count in (("stalls", growth.stalls), ("given_back_blocks", growth.given_back)):
            data[name] = count - self._counted.get(name, 0)
            self._counted[name] = count
        return VmmStats(data=data)

    def close(self) -> None:
        if self._growth is not None:
            self._watch.close()
        self._link.close()
