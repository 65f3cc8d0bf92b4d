"""What allocate_slots costs for a step of 256 decodes: stock and ours by turns, in thread-CPU time.

Prints medians and means. Run it in vLLM's environment with our package beside it (see engine.py). Nothing is
asserted: it is a measurement.
"""

import json
import random
import statistics
import time

import torch
from vllm import SamplingParams
from vllm.utils.hashing import sha256
from vllm.v1.core.kv_cache_manager import KVCacheManager
from vllm.v1.core.kv_cache_utils import get_request_block_hasher, init_none_hash
from vllm.v1.kv_cache_interface import FullAttentionSpec, KVCacheConfig, KVCacheGroupSpec, KVCacheTensor
from vllm.v1.request import Request, RequestStatus

from vmm.integrations.vllm.blocks import ElasticBlockPool
from vmm.integrations.vllm.growth import Growth
from vmm.integrations.vllm.layout import layout_of
from vmm.integrations.vllm.link import DirectPort, Link
from vmm.integrations.vllm.mapper import Mapper
from vmm.integrations.vllm.memory import WorkerMemory
from vmm.integrations.vllm.settings import settings_of

REQUESTS, STEPS, BLOCK, BLOCKS = 256, 480, 16, 40_000


def kv_config() -> KVCacheConfig:
    spec = FullAttentionSpec(block_size=BLOCK, num_kv_heads=2, head_size=32, dtype=torch.float32)
    page = spec.page_size_bytes
    layers = ["first", "second"]
    tensor = KVCacheTensor(2 * page * BLOCKS, layers, layer_stride=page * BLOCKS, block_stride=page)
    return KVCacheConfig(BLOCKS, [tensor], [KVCacheGroupSpec(layers, spec)])


class Side:
    """A cache manager with 256 requests that decode."""

    def __init__(self, config: KVCacheConfig, growth_of) -> None:
        self.manager = KVCacheManager(config, 4096, scheduler_block_size=BLOCK, hash_block_size=BLOCK)
        self.growth = growth_of(self.manager.block_pool)
        hasher = get_request_block_hasher(BLOCK, sha256)
        self.requests = [
            Request(f"{i}", [3 + i % 500] * 40, SamplingParams(max_tokens=4000), None, block_hasher=hasher)
            for i in range(REQUESTS)
        ]
        for request in self.requests:
            self.begin(request)

    def begin(self, request: Request) -> None:
        hits, tokens, *_ = self.manager.get_computed_blocks(request)
        if self.growth is not None:
            with self.growth.lock:
                self.growth.arrives(request.request_id, 4)
                self.growth.wanted(request.request_id, 4)
        while self.manager.allocate_slots(request, request.num_tokens - tokens, tokens, hits) is None:
            self.rescue()
        if self.growth is not None:
            with self.growth.lock:
                self.growth.starts(request.request_id)
        request.num_computed_tokens = request.num_tokens
        request.status = RequestStatus.RUNNING
        request.append_output_token_ids(7)

    def rescue(self) -> None:
        """As vLLM's scheduler asks before it preempts."""
        assert self.growth is not None
        with self.growth.lock:
            assert self.growth.rescue(), "nobody is preempted while there is memory"

    def step(self) -> float:
        began = time.thread_time()
        if self.growth is not None:
            with self.growth.lock:
                self.growth.step()
        for request in self.requests:
            while self.manager.allocate_slots(request, 1) is None:
                self.rescue()
        took = time.thread_time() - began
        for request in self.requests:
            request.num_computed_tokens += 1
            request.append_output_token_ids(7)
        return took


def main() -> None:
    init_none_hash(sha256)
    config = kv_config()
    memory = WorkerMemory(settings_of({"budget": "600MiB"}), layout_of(config), torch.device("cpu"), 256)
    mapper, link = Mapper(memory), Link()
    port = DirectPort(link, mapper)

    def growth_of(pool):
        growth = Growth(pool, link, row=port.hello["row"], capacity=port.hello["capacity"])
        ElasticBlockPool.adopt(pool, growth)
        return growth

    sides = {"stock": Side(config, lambda pool: None), "ours": Side(config, growth_of)}
    times: dict[str, list[float]] = {"stock": [], "ours": []}
    for _ in range(STEPS):
        for name in random.sample(list(sides), 2):
            times[name].append(sides[name].step())
    found = {"stalls": sides["ours"].growth.stalls}
    for statistic in (statistics.median, statistics.mean):
        stock, ours = (statistic(times[name]) * 1e6 for name in ("stock", "ours"))
        found |= {
            f"{statistic.__name__}_stock_us": round(stock),
            f"{statistic.__name__}_ours_us": round(ours),
            f"{statistic.__name__}_ratio": round(ours / stock, 3),
        }
    print(json.dumps(found))
    mapper.close()
    memory.close()


if __name__ == "__main__":
    main()
