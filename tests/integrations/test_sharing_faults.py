"""Every driver call of what shares pages fails once: all or nothing, or no tokens, but never wrong ones."""

import copy
import itertools

import pytest
import torch
from tiny import (
    PAGES,
    assert_same_states,
    assert_unchanged,
    cache_for,
    filled,
    model_of,
    small_pool,
    snapshot,
    states,
)
from transformers import DynamicCache

from vmm import Error

pytestmark = pytest.mark.host_only  # as small_pool is

MODEL = "qwen2-mixed"
WINDOW = 100


def reorder(cache):
    cache.reorder_cache(torch.tensor([1, 2, 0]))


def share(cache):
    cache.reorder_cache(torch.tensor([1, 1, 2]))


def repeat(cache):
    cache.batch_repeat_interleave(2)


def crop_of_a_copy(cache):
    twin = copy.deepcopy(cache)
    twin.crop(-20)
    filled(twin, 30, 3, seed=9)
    cache.crop(-20)
    filled(cache, 30, 3, seed=9)
    assert_same_states(cache, twin)


def crop_of_shared_rows(cache):
    cache.reorder_cache(torch.tensor([1, 1, 1]))
    cache.crop(-20)


def slide(cache):
    for seed in range(3):
        filled(cache, 64, 3, seed=seed)
        cache.crop(0)


def alike(cache):
    for index in range(len(cache)):
        keys = states(150, seed=index).expand(3, -1, -1, -1)
        cache.update(keys, keys.flip(-1), index)


def begun(pool):
    model = model_of(MODEL, window=WINDOW)
    pair = DynamicCache(config=model.config), cache_for(model, pool)
    for cache in pair:
        cache.activate_past_recording()
        filled(cache, 150, 3)
    return pair


@pytest.mark.parametrize("times", [1, 3, 8])
@pytest.mark.parametrize(
    "act",
    [reorder, share, repeat, crop_of_a_copy, crop_of_shared_rows, slide, alike],
    ids=lambda act: act.__name__,
)
def test_every_driver_call_may_fail(act, times):
    for call in itertools.count(1):
        pool = small_pool(40 * PAGES)
        stock, cache = begun(pool)
        before = snapshot(cache)
        pool._core.fail_at(call, times)
        try:
            act(cache)
            done = True
        except Error:
            done = False
        failed = pool._core.last_failed
        pool._core.fail_at(0, 0)
        pool.check()
        if done:
            act(stock)
            assert_same_states(cache, stock)
        elif act in (reorder, share, repeat) and cache.get_seq_length():
            assert_unchanged(cache, before)
        else:  # it is one of those that do several things, or the driver has lost the tokens
            cache.reset()
        filled(cache, 70, len(cache.layers[0].keys) if cache.get_seq_length() else 3, seed=30)
        del cache, stock
        pool.check()
        pool.close()
        if not failed:
            break
    assert call > 3
