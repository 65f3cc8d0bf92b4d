"""Random courses of a cache and its deep copies, full layers and sliding ones, against DynamicCache."""

import copy
import os

import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tiny import LAYERS, assert_in_place, assert_same_states, cache_for, model_of, states
from transformers import DynamicCache

from vmm import Pool
from vmm.testing import settle

WINDOW = 100
MOST_ROWS, MOST_CACHES = 6, 3

# What is drawn does not depend on the state that it meets: a step takes its numbers modulo what there is.
NUMBER = st.integers(0, 2**16)
ROWS = st.lists(NUMBER, min_size=1, max_size=MOST_ROWS)
STEP = st.one_of(
    st.tuples(st.just("update"), NUMBER, st.sampled_from([1, 2, 30, 63, 64, 65, 130]), st.booleans()),
    st.tuples(st.just("update"), NUMBER, st.just(1), st.booleans()),
    st.tuples(st.just("crop"), NUMBER, st.sampled_from([0, 1, 5, 63, 64, 65, 200]), st.booleans()),
    st.tuples(st.just("reorder"), NUMBER, ROWS, st.booleans()),
    st.tuples(st.just("select"), NUMBER, ROWS, st.booleans()),
    st.tuples(st.just("repeat"), NUMBER, st.integers(1, 3), st.booleans()),
    st.tuples(st.just("park"), NUMBER, NUMBER, st.booleans()),
    st.tuples(st.just("deepcopy"), NUMBER, NUMBER, st.booleans()),
    st.tuples(st.just("forget"), NUMBER, NUMBER, st.booleans()),
)


class Pairs:
    """Up to three caches, each beside a DynamicCache that has gone the same way."""

    def __init__(self, pool):
        self.pool = pool
        model = model_of("qwen2-mixed", window=WINDOW)
        self.pairs = [(DynamicCache(config=model.config), cache_for(model, pool))]
        for cache in self.pairs[0]:
            cache.activate_past_recording()  # else a sliding layer could not be cropped
        self.seed = 0

    def rows(self, pair):
        return len(pair[0].layers[0].keys) if pair[0].get_seq_length() else 0

    def update(self, pair, tokens, alike):
        self.seed += 1
        rows = self.rows(pair) or 1 + self.seed % 3
        for index in range(LAYERS):
            keys = states(tokens, 1 if alike else rows, seed=7 * self.seed + index).expand(rows, -1, -1, -1)
            wanted, found = (cache.update(keys, keys.flip(-1), index) for cache in pair)
            assert all(torch.equal(*both) for both in zip(found, wanted, strict=True))

    def crop(self, pair, tokens, _):
        """Not below the window that was there when the past was last cut off, which nobody holds, and not to
        nothing, where the stock cache remembers the batch."""
        sliding = pair[0].layers[1]
        if sliding.get_seq_length():
            spare = sliding.keys.shape[2]
            if sliding.get_seq_length() > spare:
                spare -= WINDOW - 1
            for cache in pair:
                cache.crop(-min(tokens, max(0, spare - 1)))

    def choose(self, pair, numbers, method):
        if rows := self.rows(pair):
            for cache in pair:
                getattr(cache, method)(torch.tensor([number % rows for number in numbers]))

    def reorder(self, pair, numbers, same_size):
        rows = self.rows(pair)
        self.choose(pair, (numbers * rows)[:rows] if same_size else numbers, "reorder_cache")

    def select(self, pair, numbers, _):
        self.choose(pair, numbers, "batch_select_indices")

    def repeat(self, pair, repeats, _):
        if self.rows(pair) * repeats <= MOST_ROWS:
            for cache in pair:
                cache.batch_repeat_interleave(repeats)

    def park(self, pair, _, push_out):
        pair[1].park()
        if push_out:
            self.push_out()

    def push_out(self):
        """All that is parked leaves the device."""
        while self.pool._core.await_room(2**30):
            pass
        self.pool.trim(2**30)

    def deepcopy(self, pair, *_):
        if len(self.pairs) < MOST_CACHES:
            self.pairs.append(copy.deepcopy(pair))

    def forget(self, pair, _, by_reset):
        if len(self.pairs) > 1:
            self.pairs = [each for each in self.pairs if each is not pair]
        elif by_reset:
            for cache in pair:
                cache.reset()

    def run(self, steps):
        self.update(self.pairs[0], 130, True)
        for name, which, argument, flag in steps:
            getattr(self, name)(self.pairs[which % len(self.pairs)], argument, flag)
            for dynamic, ours in self.pairs:  # nobody sees what others write
                assert_same_states(ours, dynamic)
                if ours.get_seq_length():
                    assert_in_place(ours)


@settings(
    max_examples=int(os.environ.get("VMM_EXAMPLES", "60")),
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
@given(st.lists(STEP, min_size=1, max_size=25))
def test_random_courses(steps):
    with Pool("64MiB", host="64MiB") as pool:
        Pairs(pool).run(steps)
        settle(pool)
        pool.check()
        assert pool.stats().kept_bytes == pool.stats().saved_bytes == 0
