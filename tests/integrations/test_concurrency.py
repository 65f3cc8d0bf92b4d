"""Several caches on one pool, in turn and at once."""

import pytest
import torch
from at_once import at_once
from tiny import (
    LAYERS,
    PAGE_BYTES,
    PAGES,
    assert_in_place,
    assert_same_output,
    assert_same_states,
    cache_for,
    eventually,
    filled,
    generate,
    left_padding,
    model_of,
    prompt,
)
from transformers import DynamicCache

from vmm import Pool


def test_two_caches_in_turn(pool):
    """Token by token, in pages that lie between each other's."""
    model = model_of()
    ours = [cache_for(model, pool) for _ in range(2)]
    stock = [DynamicCache(config=model.config) for _ in range(2)]
    for step in range(90):
        for index in range(2):
            for cache in (ours[index], stock[index]):
                filled(cache, 1 + index, 2, seed=100 * step + index)
    for cache, expected in zip(ours, stock, strict=True):
        assert_same_states(cache, expected)


def test_two_conversations_in_turn(pool):
    model, ids = model_of(), [prompt(20, seed=1), prompt(33, seed=2)]

    def drive(make_cache):
        caches = [make_cache(), make_cache()]
        outputs, longest = [], ids
        for _ in range(4):
            turn = [generate(model, cache, longer) for cache, longer in zip(caches, longest, strict=True)]
            longest = [torch.cat([output.sequences, prompt(5, seed=9)], dim=1) for output in turn]
            outputs += turn
        return outputs

    expected = drive(lambda: DynamicCache(config=model.config))
    for output, wanted in zip(drive(lambda: cache_for(model, pool)), expected, strict=True):
        assert_same_output(output, wanted)


def work(model, cache, seed):
    """One thread's job; different lengths, so that the threads are never in step."""
    ids = prompt(20 + 7 * seed, 1 + seed % 2, seed=seed)
    return generate(model, cache, ids, left_padding(ids), max_new_tokens=40 + 5 * seed)


@pytest.mark.parametrize("family", ["llama", "qwen2-mixed"])
def test_threads_on_one_pool(pool, family):
    model, seeds = model_of(family), range(4)
    expected = [work(model, DynamicCache(config=model.config), seed) for seed in seeds]

    def round_of_all():
        jobs = [lambda seed=seed: work(model, cache_for(model, pool), seed) for seed in seeds]
        for output, wanted in zip(at_once(*jobs), expected, strict=True):
            assert_same_output(output, wanted)
            assert_in_place(output.past_key_values)

    for _ in range(2):  # the second time in memory that the first has left behind, in whatever order
        round_of_all()
        pool.check()
        eventually(lambda: pool.stats().reservations_leased == 0)


def test_threads_that_take_each_others_memory():
    """The pool has room for all live caches and little more, so what one leaves behind another reclaims."""
    model = model_of()
    expected = {
        seed: filled(DynamicCache(config=model.config), 60 + seed, 1 + seed % 2, seed) for seed in range(8)
    }
    with Pool((4 * 2 * 2 + 4) * PAGES * PAGE_BYTES) as pool:

        def churn(start):
            for turn in range(12):
                seed = (start + turn) % 8
                cache = filled(cache_for(model, pool), 60 + seed, 1 + seed % 2, seed)
                assert_same_states(cache, expected[seed])
                assert_in_place(cache)
                del cache  # before the next is made: there is no room for both

        at_once(*(lambda start=start: churn(start) for start in range(4)))
        eventually(lambda: pool.stats().reservations_leased == 0)
        pool.check()
        assert pool.stats().reservations_adopted > 2 * LAYERS
