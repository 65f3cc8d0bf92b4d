"""Reordering, repeating and selecting rows: beam search and contrastive search do it."""

import copy

import pytest
import torch
from tiny import (
    append_to,
    assert_in_place,
    assert_same_states,
    assert_unchanged,
    cache_for,
    filled,
    model_of,
    small_pool,
    snapshot,
)

from vmm import OutOfPages


@pytest.mark.parametrize("order", [[2, 0, 0], [0, 1, 2], [1, 2, 0], [2], [1, 1, 0, 2, 2]], ids=str)
def test_reorder(pair, order):
    for cache in pair:
        cache.reorder_cache(torch.tensor(order))
    append_to(pair, batch=len(order))
    assert_same_states(*reversed(pair))
    assert_in_place(pair[1])


@pytest.mark.parametrize("repeats", [1, 2, 5])
def test_batch_repeat_interleave(pair, repeats):
    for cache in pair:
        cache.batch_repeat_interleave(repeats)
    append_to(pair, batch=3 * repeats)
    assert_same_states(*reversed(pair))
    assert_in_place(pair[1])


@pytest.mark.parametrize(
    "indices",
    [torch.tensor([2, 0]), torch.tensor([-1]), torch.tensor([1, 1, 0, 2]), torch.tensor([True, False, True])],
    ids=["fewer", "negative", "more", "mask"],
)
def test_batch_select_indices(pair, indices):
    for cache in pair:
        cache.batch_select_indices(indices)
    append_to(pair, batch=len(pair[0].layers[0].keys))
    assert_same_states(*reversed(pair))
    assert_in_place(pair[1])


def test_selecting_a_row_there_is_not_changes_nothing(pair):
    before = snapshot(pair[1])
    with pytest.raises(IndexError):
        pair[1].batch_select_indices(torch.tensor([3]))
    assert_unchanged(pair[1], before)


def test_running_out_of_memory_half_way_changes_no_layer():
    pool = small_pool(80)  # 3 rows take 36 pages, 9 rows would take 108 beside them
    cache = filled(cache_for(model_of(), pool), tokens=20, batch=3)
    before = snapshot(cache)
    with pytest.raises(OutOfPages):
        cache.batch_repeat_interleave(3)
    assert_unchanged(cache, before)
    cache.batch_select_indices(torch.tensor([1]))
    assert_same_states(cache, cache)
    assert cache.layers[0].keys.shape[0] == 1
    pool.check()


def test_a_shallow_copy_shares_the_layers(pair):
    other = copy.copy(pair[1])
    append_to([other])
    assert other.layers is pair[1].layers
    assert pair[1].get_seq_length() == other.get_seq_length()


def test_rows_of_an_empty_cache(pool):
    cache = cache_for(model_of(), pool)
    cache.reorder_cache(torch.tensor([0]))
    cache.batch_repeat_interleave(2)
    cache.batch_select_indices(torch.tensor([0]))
    assert cache.get_seq_length() == 0
