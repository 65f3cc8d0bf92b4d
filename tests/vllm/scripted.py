"""A scheduler's block manager over workers that follow a script: no engine, no model, no memory."""

from collections import deque

import torch
from vllm.sampling_params import SamplingParams
from vllm.utils.hashing import sha256
from vllm.v1.core.kv_cache_manager import KVCacheManager
from vllm.v1.core.kv_cache_utils import get_request_block_hasher, init_none_hash
from vllm.v1.kv_cache_interface import FullAttentionSpec, KVCacheConfig, KVCacheGroupSpec
from vllm.v1.request import Request, RequestStatus

from vmm.integrations.vllm.blocks import ElasticBlockPool
from vmm.integrations.vllm.growth import Growth

BLOCK_TOKENS = 16


class ScriptedWorkers:
    """Stands where Link does. ``answers`` says what becomes of an announcement: "ready", "refused", or
    "late", which is answered (ready) by `catch_up`, or by the ``patience``-th wait for it."""

    def __init__(self, patience=3):
        self.answers = deque()  # "ready" when it is empty
        self.patience = patience
        self.kept = set()  # what has memory, by the workers
        self.announced = 0
        self.waits = 0
        self._late = deque()
        self._arrived = deque()

    def announce(self, ids, row):
        self.announced += len(ids)
        assert not self.kept.intersection(ids), "announced while it has memory"
        answer = self.answers.popleft() if self.answers else "ready"
        if answer == "late":
            self._late.append(ids)
        else:
            self._answer(answer, ids)

    def drop(self, ids):
        assert self.kept.issuperset(ids), "dropped without memory"
        self.kept.difference_update(ids)

    def catch_up(self):
        while self._late:
            self._answer("ready", self._late.popleft())

    def take(self):
        taken, self._arrived = list(self._arrived), deque()
        return taken

    def wait(self, seconds):
        self.waits += 1
        if self._late and self.waits % self.patience == 0:
            self._answer("ready", self._late.popleft())
        return bool(self._arrived)

    def _answer(self, kind, ids):
        if kind == "ready":
            self.kept.update(ids)
        self._arrived.append((kind, ids))


class Scheduler:
    """What vLLM's scheduler does with a KVCacheManager, for requests of some tokens."""

    def __init__(self, workers, *, blocks=400, capacity=200, row=2, max_model_len=1024):
        init_none_hash(sha256)
        spec = FullAttentionSpec(block_size=BLOCK_TOKENS, num_kv_heads=1, head_size=32, dtype=torch.float32)
        self.manager = KVCacheManager(
            KVCacheConfig(blocks, [], [KVCacheGroupSpec(["layer"], spec)]),
            max_model_len=max_model_len,
            scheduler_block_size=BLOCK_TOKENS,
            hash_block_size=BLOCK_TOKENS,
        )
        self.pool = self.manager.block_pool
        self.growth = Growth(self.pool, workers, row=row, capacity=capacity)
        ElasticBlockPool.adopt(self.pool, self.growth)
        self.workers = workers
        self.requests = {}
        self._hasher = get_request_block_hasher(BLOCK_TOKENS, sha256)

    def arrive(self, name, tokens):
        request = Request(
            name, list(tokens), SamplingParams(max_tokens=1000), None, block_hasher=self._hasher
        )
        self.requests[name] = request
        with self.growth.lock:
            self.growth.arrives(name, -(-len(tokens) // BLOCK_TOKENS) + 1)
        return request

    def prefill(self, name):
        """Whether it got its prompt's blocks."""
        request = self.requests[name]
        with self.growth.lock:
            self.growth.wanted(name, -(-request.num_tokens // BLOCK_TOKENS) + 1)
        cached, hit, *_ = self.manager.get_computed_blocks(request)
        blocks = self.manager.allocate_slots(request, request.num_tokens - hit, hit, cached)
        if blocks is None:
            return False
        with self.growth.lock:
            self.growth.starts(name)
        request.status = RequestStatus.RUNNING
        request.num_computed_tokens = request.num_tokens
        return True

    def decode(self, name, token=1):
        """Whether the request goes on: it got the slot of one more token, at once or in a step after this."""
        request = self.requests[name]
        request.append_output_token_ids(token)
        for _ in range(10):
            if self.manager.allocate_slots(request, 1) is not None:
                request.num_computed_tokens += 1
                return True
            with self.growth.lock:
                if not self.growth.rescue():
                    return False  # as vLLM preempts it
            self.step()
        raise AssertionError("rescued again and again, and still no block")

    def finish(self, name):
        request = self.requests.pop(name)
        self.manager.free(request)
        with self.growth.lock:
            self.growth.leaves(name)

    def step(self):
        with self.growth.lock:
            self.growth.step()

    def held(self):
        return [
            block
            for request in self.requests.values()
            for group in self.manager.get_block_ids(request.request_id)
            for block in group
        ]

    def check(self):
        """Only blocks that have memory are free or held."""
        kept, pool = self.workers.kept, self.pool
        free = [block.block_id for block in pool.free_block_queue.get_all_free_blocks()]
        assert len(free) == pool.get_num_free_blocks() == len(set(free))
        assert kept.issuperset(free), f"free without memory: {set(free) - kept}"
        assert kept.issuperset(self.held()), f"in use without memory: {set(self.held()) - kept}"
        assert not set(free).intersection(self.held())
        assert len(kept) < self.growth.rows.capacity
        assert 0 <= pool.get_usage() <= 1
