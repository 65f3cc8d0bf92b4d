"""What VmmConnector costs vLLM's scheduler: ``allocate_slots`` of 256 decoding requests, one token each.

Stock's KVCacheManager and ours take turns step by step in one process; the thread's CPU time counts. There is
no engine and no model. Our blocks have real memory, which a worker's threads map and confirm as in an engine.
"""

from __future__ import annotations

import statistics
from dataclasses import dataclass
from time import sleep, thread_time
from typing import TYPE_CHECKING, Any

from vmm.benchmarks.step_peer import block_manager, check, prefilled

if TYPE_CHECKING:
    from vllm.v1.core.kv_cache_manager import KVCacheManager
    from vllm.v1.request import Request

    from vmm.integrations.vllm.growth import Growth

SEQUENCES, STEPS, WARM_UP_STEPS = 256, 400, 40
BLOCK_BYTES, PAGE_BYTES = 2048, 2**16  # 32 blocks in a page, as with 64 KiB a block and layer in 2 MiB
STEP_SECONDS = 0.002  # between two steps, in which workers map


@dataclass
class _Arm:
    manager: KVCacheManager
    requests: list[Request]
    growth: Growth | None = None

    def step(self) -> float:
        """CPU seconds of the calls of one step, with what the connector does once a step."""
        allocate = self.manager.allocate_slots
        start = thread_time()
        for request in self.requests:
            allocate(request, 1)
        if self.growth is not None:
            with self.growth.lock:
                self.growth.step()
        used = thread_time() - start
        for request in self.requests:
            request.num_computed_tokens += 1
            request.append_output_token_ids(0)
        return used


def measured() -> dict[str, Any]:
    """Microseconds of a step, median: ``stock_us`` and ``ours_us``."""
    import vllm

    stock, (ours, close) = _stock(), _ours()
    times: dict[str, list[float]] = {"stock_us": [], "ours_us": []}
    try:
        for number in range(WARM_UP_STEPS + STEPS):
            # In turns, because the second of a pair finds warmer caches.
            pair = [("stock_us", stock), ("ours_us", ours)]
            for name, arm in pair if number % 2 else reversed(pair):
                used = arm.step()
                if number >= WARM_UP_STEPS:
                    times[name].append(1e6 * used)
            sleep(STEP_SECONDS)
        for arm in (stock, ours):
            check(arm.manager, arm.requests)
    finally:
        close()
    return {name: statistics.median(values) for name, values in times.items()} | {"vllm": vllm.__version__}


def _stock() -> _Arm:
    manager = block_manager(SEQUENCES, 1500 + WARM_UP_STEPS + STEPS)
    return _Arm(manager, prefilled(manager, SEQUENCES, WARM_UP_STEPS + STEPS))


def _ours() -> tuple[_Arm, Any]:
    """And what ends its worker."""
    import torch

    from vmm.integrations.vllm.blocks import ElasticBlockPool
    from vmm.integrations.vllm.growth import Growth
    from vmm.integrations.vllm.layout import Layout
    from vmm.integrations.vllm.link import DirectPort, Link
    from vmm.integrations.vllm.mapper import Mapper
    from vmm.integrations.vllm.memory import WorkerMemory
    from vmm.integrations.vllm.settings import Settings

    manager = block_manager(SEQUENCES, 1500 + WARM_UP_STEPS + STEPS)
    pool = manager.block_pool
    count = pool.num_gpu_blocks
    layout = Layout(size=count * BLOCK_BYTES, starts=(0,), stride=BLOCK_BYTES, count=count)
    settings = Settings(budget_bytes=2 * count * BLOCK_BYTES, page_bytes=PAGE_BYTES)
    memory = WorkerMemory(settings, layout, torch.device("cpu"), 0)
    mapper, link = Mapper(memory), Link()
    hello = DirectPort(link, mapper).hello
    growth = Growth(pool, link, row=hello["row"], capacity=hello["capacity"], shrinks=hello["shrinks"])
    ElasticBlockPool.adopt(pool, growth)
    for number in range(SEQUENCES):
        with growth.lock:
            growth.arrives(str(number), 0)

    def close() -> None:
        link.close()
        mapper.close()

    return _Arm(manager, prefilled(manager, SEQUENCES, WARM_UP_STEPS + STEPS), growth), close
