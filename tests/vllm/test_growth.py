"""The scheduler's side over workers that are a list: vLLM's own pool, no engine."""

from array import array

import pytest
from vllm.v1.core.block_pool import BlockPool
from vllm.v1.core.kv_cache_utils import make_block_hash_with_group_id

from vmm.integrations.vllm.blocks import ElasticBlockPool
from vmm.integrations.vllm.growth import Growth, WorkersLost


class Workers:
    """Workers with ``memory`` blocks. They answer when the scheduler waits, or when ``late`` is off."""

    def __init__(self, memory=10**6, late=False):
        self.memory, self.late = memory, late
        self.has = set()
        self.asked = []
        self.answers = []

    def announce(self, ids, row):
        assert not set(ids) & self.has
        self.asked.append((ids, row))
        if not self.late:
            self.work()

    def work(self):
        for ids, row in self.asked:
            for first in range(ids[0] // row, ids[-1] // row + 1):
                some = array("i", [block for block in ids if block // row == first])
                fits = len(self.has) + len(some) <= self.memory
                self.has |= set(some) if fits else set()
                self.answers.append(("ready" if fits else "refused", some))
        self.asked = []

    def drop(self, ids):
        assert set(ids) <= self.has
        self.has -= set(ids)

    def take(self):
        taken, self.answers = self.answers, []
        return taken

    def wait(self, seconds):
        self.work()
        return bool(self.answers)


def made(blocks=64, row=4, capacity=10**6, **workers):
    pool = BlockPool(blocks, enable_caching=True, hash_block_size=16)
    workers = Workers(**workers)
    growth = Growth(pool, workers, row=row, capacity=capacity)
    ElasticBlockPool.adopt(pool, growth)
    return pool, growth, workers


def cached(pool, block, name):
    key = make_block_hash_with_group_id(name.encode(), 0)
    block.set_block_hash(key)
    pool.cached_block_hash_to_block.insert(key, block)
    return key


def free_ids(pool):
    return [block.block_id for block in pool.free_block_queue.get_all_free_blocks()]


def check(pool, growth, workers):
    """Only blocks that have memory are free or used, and the counters are right."""
    growth.collect()
    used = {block.block_id for block in pool.blocks if block.ref_cnt > 0 and not block.is_null}
    free = free_ids(pool)
    assert len(free) == len(set(free)) == pool.get_num_free_blocks()
    assert used | set(free) == workers.has
    assert not used & set(free)
    assert growth.rows.present == len(workers.has)
    fresh = [pool.blocks[block].block_hash is None for block in free]
    assert all(fresh[: growth.fresh])


def test_nothing_is_free_before_it_is_confirmed():
    pool, growth, workers = made(late=True)
    assert pool.get_num_free_blocks() == 0
    growth.arrives("a", 10)
    growth.collect()
    assert pool.get_num_free_blocks() == 0
    workers.work()
    growth.collect()
    assert pool.get_num_free_blocks() >= 10
    check(pool, growth, workers)


def test_it_waits_for_what_is_on_its_way_rather_than_evict():
    pool, growth, workers = made(late=True)
    growth.arrives("a", 4)
    workers.work()
    growth.collect()
    blocks = pool.get_new_blocks(pool.get_num_free_blocks())
    for number, block in enumerate(blocks):
        cached(pool, block, f"{number}")
    pool.free_blocks(blocks)
    new = pool.get_new_blocks(3)
    assert not {block.block_id for block in new} & {block.block_id for block in blocks}
    assert all(block.block_hash is not None for block in blocks)
    assert growth.stalls == 1
    check(pool, growth, workers)


def test_under_a_cap_the_least_recently_used_is_evicted_as_with_stock():
    pool, growth, workers = made(capacity=8)
    growth.arrives("a", 7)
    blocks = pool.get_new_blocks(7)
    keys = [cached(pool, block, f"{number}") for number, block in enumerate(blocks)]
    pool.free_blocks(blocks)
    new = pool.get_new_blocks(2)
    assert new == blocks[:2]
    assert pool.cached_block_hash_to_block.get_one_block(keys[0]) is None
    assert pool.cached_block_hash_to_block.get_one_block(keys[2]) is blocks[2]
    check(pool, growth, workers)


def test_usage_is_of_what_can_be_had():
    pool, growth, _ = made(blocks=1000, capacity=101, row=1)
    growth.arrives("a", 50)
    assert pool.get_usage() == 0
    blocks = pool.get_new_blocks(50)
    assert pool.get_usage() == 0.5
    pool.free_blocks(blocks)
    assert pool.get_usage() == 0


def test_reset_forgets_everything_and_gives_the_memory_back():
    pool, growth, workers = made()
    growth.arrives("a", 20)
    blocks = pool.get_new_blocks(20)
    assert not pool.reset_prefix_cache()
    growth.leaves("a")
    key = cached(pool, blocks[9], "x")
    pool.free_blocks(blocks)
    assert pool.reset_prefix_cache()
    assert pool.num_gpu_blocks == 64
    assert pool.cached_block_hash_to_block.get_one_block(key) is None
    assert workers.has == {1, 2, 3}
    check(pool, growth, workers)


def test_idle_gives_back_all_but_the_floor_and_evicts_what_was_there():
    pool, growth, workers = made()
    growth.arrives("a", 20)
    blocks = pool.get_new_blocks(20)
    key = cached(pool, blocks[-1], "x")
    reused = []
    pool.free_blocks(blocks[1:])
    pool.unpin_blocks(blocks[:1], reused.append)
    growth.leaves("a")
    assert growth.give_back() > 16
    assert workers.has == {1, 2, 3}
    assert pool.cached_block_hash_to_block.get_one_block(key) is None
    check(pool, growth, workers)
    growth.arrives("b", 12)
    growth.collect()
    assert pool.get_num_free_blocks() >= 12
    check(pool, growth, workers)


def test_rows_in_use_stay():
    pool, growth, workers = made()
    growth.arrives("a", 20)
    blocks = pool.get_new_blocks(20)
    kept = blocks[8], blocks[16]
    pool.free_blocks([block for block in blocks if block not in kept])
    growth.leaves("a")
    growth.give_back()
    assert {block.block_id for block in kept} <= workers.has
    assert {block // 4 for block in workers.has} == {0, *(block.block_id // 4 for block in kept)}
    check(pool, growth, workers)


def test_while_requests_run_what_was_freed_in_the_last_two_steps_stays():
    pool, growth, workers = made(row=1)
    growth.arrives("a", 20)
    blocks = pool.get_new_blocks(20)
    used_before = {block.block_id for block in blocks[:10]}
    pool.free_blocks(blocks[:10])
    growth.step()
    growth.give_back()
    assert used_before <= workers.has
    growth.step()
    growth.give_back()
    assert not used_before & workers.has
    check(pool, growth, workers)


def test_as_much_as_is_asked_goes_the_least_recently_used_first():
    pool, growth, workers = made(row=1, capacity=21)
    growth.arrives("a", 20)
    blocks = pool.get_new_blocks(20)
    for number, block in enumerate(blocks):
        cached(pool, block, f"{number}")
    pool.free_blocks(blocks)
    growth.leaves("a")
    before = set(workers.has)
    assert growth.give_back(5) == 5
    assert before - workers.has == {block.block_id for block in blocks[:5]}
    check(pool, growth, workers)


def test_refused_blocks_are_not_free_and_are_asked_for_again_later(monkeypatch):
    pool, growth, workers = made(memory=11)
    growth.arrives("a", 30)
    growth.collect()
    assert pool.get_num_free_blocks() == 11
    assert not growth.can_grow()
    growth.wanted("a", 20)
    assert pool.get_num_free_blocks() == 11
    assert not growth.rescue()
    workers.memory = 100
    growth._refused_until = 0
    growth.wanted("a", 20)
    assert pool.get_num_free_blocks() >= 20
    check(pool, growth, workers)


def test_a_running_request_that_finds_no_block_waits_for_one():
    pool, growth, workers = made(late=True, capacity=32)
    growth.arrives("a", 3)
    growth.wanted("a", 3)
    growth.starts("a")
    pool.get_new_blocks(pool.get_num_free_blocks())
    rescued = 0
    while growth.rescue():
        rescued += 1
        pool.get_new_blocks(pool.get_num_free_blocks())
    assert growth.rows.present == 31
    assert 1 < rescued < 10
    check(pool, growth, workers)


def test_a_waiting_request_that_nobody_keeps_from_starting_gets_more_when_it_comes_again():
    pool, growth, workers = made(late=True)
    growth.arrives("a", 2)
    for least in (2, 4, 8, 16, 32, 60, 60):
        growth.wanted("a", 2)
        assert pool.get_num_free_blocks() >= least
    growth.starts("a")
    growth.leaves("a")
    assert growth.low == 4
    check(pool, growth, workers)


def test_a_lost_worker_is_an_error_at_once():
    pool, growth, workers = made(late=True)
    growth.arrives("a", 10)
    workers.answers.append(("lost", array("i")))
    with pytest.raises(WorkersLost):
        pool.get_new_blocks(1)
    with pytest.raises(WorkersLost):
        growth.step()
