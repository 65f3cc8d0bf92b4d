"""Idle conversations: a VmmCache that is parked, goes to a tier, and goes on where it was."""

import copy
import gc
import os
import pickle
import time
import weakref

import pytest
import torch
from cuda_standin import ON_CUDA
from tiny import (
    PAGE_BYTES,
    assert_same_states,
    cache_for,
    filled,
    generate,
    model_of,
    prompt,
)
from transformers import DynamicCache

from vmm import InvalidArgument, KVCache, OutOfPages, Pool, SequenceLost
from vmm.testing import settle

TOKENS = 300


@pytest.fixture(params=["host", "nvme"])
def pool(request, tmp_path):
    """With memory for about two conversations, and a tier for many."""
    tier = {"host": "64MiB"} if request.param == "host" else {"nvme": f"{tmp_path}:64MiB"}
    with Pool("700KiB", **tier) as made:
        yield made
        made.check()


def push_out(pool):
    while pool._core.await_room(2**30):
        pass
    pool.trim(2**30)


def conversation(pool, family="llama", seed=1):
    """A cache with tokens, and a DynamicCache that has the same."""
    model = model_of(family)
    pair = DynamicCache(config=model.config), cache_for(model, pool)
    for cache in pair:
        filled(cache, TOKENS, seed=seed)
    return pair


def more(pair, seed):
    for cache in pair:
        filled(cache, 1, batch=len(pair[0].layers[0].keys), seed=seed)
    assert_same_states(pair[1], pair[0])


def test_more_conversations_than_memory_go_on_where_they_were(pool):
    pairs = []
    for seed in range(5):
        pairs.append(conversation(pool, seed=seed))
        pairs[-1][1].park(category="user")
    for turn in range(3):
        for pair in pairs:
            more(pair, seed=100 + turn)
            pair[1].park(category="user")
    tiers = pool.stats().tiers
    assert tiers.loaded_pages > 100
    assert tiers.lost_pages == 0
    assert tiers.parked_sequences == 5


def test_a_model_goes_on_at_the_same_addresses(pool):
    model, ids = model_of("llama"), prompt(TOKENS)
    pair = DynamicCache(config=model.config), cache_for(model, pool)
    first = generate(model, pair[1], ids).sequences
    assert torch.equal(first, generate(model, pair[0], ids).sequences)
    address = pair[1].layers[0].keys.data_ptr()
    pair[1].park()
    push_out(pool)
    assert not pair[1].ready
    assert pair[1].get_seq_length() == pair[0].get_seq_length()  # nobody needs its tokens for that
    assert not pair[1].ready
    again = [generate(model, cache, torch.cat((first, ids[:, :3]), 1)).sequences for cache in pair]
    assert torch.equal(*again)
    assert pair[1].layers[0].keys.data_ptr() == address


def test_windows_stay_and_the_rest_comes_back(pool):
    pair = conversation(pool, "qwen2-mixed")
    for seed in range(3):
        pair[1].park()
        push_out(pool)
        more(pair, seed=seed)


def test_what_is_prefetched_is_ready_some_time_later(pool):
    pair = conversation(pool)
    pair[1].prefetch()  # nothing is parked
    pair[1].park()
    pair[1].park()  # it is already
    push_out(pool)
    assert pair[1].load_s is None  # nothing has been read yet
    pair[1].prefetch(0.001)
    while not pair[1].ready:
        settle(pool)
    assert pair[1].load_s == 0.0
    more(pair, seed=3)
    assert pool.stats().tiers.waited_ms == 0


@pytest.mark.parametrize(
    "change",
    [
        lambda cache: cache.crop(-7),
        lambda cache: cache.batch_repeat_interleave(2),
        lambda cache: cache.batch_select_indices(torch.tensor([0])),
        lambda cache: cache.reorder_cache(torch.tensor([0])),
        lambda cache: [copy.deepcopy(cache)],
        lambda cache: [pickle.loads(pickle.dumps(cache))],
        lambda cache: cache.layers[1].crop(-0),
        lambda cache: cache.layers[1].values.sum(),
    ],
    ids=["crop", "repeat", "select", "reorder", "deepcopy", "pickle", "crop nothing", "read"],
)
def test_whatever_needs_the_tokens_brings_them_back(pool, change):
    pair = conversation(pool)
    pair[1].park()
    push_out(pool)
    for cache in pair:
        change(cache)
    assert_same_states(pair[1], pair[0])
    more(pair, seed=9)


def test_a_copy_of_a_parked_cache_is_one_of_its_own(pool):
    pair = conversation(pool)
    pair[1].park()
    push_out(pool)
    other = copy.deepcopy(pair[0]), copy.deepcopy(pair[1])
    more(other, seed=5)
    pair[1].park()
    push_out(pool)
    more(other, seed=6)
    more(pair, seed=7)


def test_statistics_bring_nothing_back(pool):
    pair = conversation(pool)
    live = pair[1].stats().live_bytes
    pair[1].park()
    push_out(pool)
    stats = pair[1].stats()
    assert (stats.live_bytes, stats.mapped_bytes, stats.tokens) == (live, 0, TOKENS)
    assert not pair[1].ready


def test_reset_forgets_what_is_away(pool):
    pair = conversation(pool)
    pair[1].park()
    push_out(pool)
    loaded = pool.stats().tiers.loaded_pages
    for cache in pair:
        cache.reset()
        filled(cache, 20, seed=8)
    assert_same_states(pair[1], pair[0])
    assert pool.stats().tiers.loaded_pages == loaded
    assert pool.stats().tiers.parked_sequences == 0


@pytest.mark.parametrize("away", [True, False])
def test_a_parked_cache_that_nobody_has_any_more_leaves_nothing(pool, away):
    gc.disable()  # nor is it a cycle
    try:
        _, ours = conversation(pool)
        ours.park()
        if away:
            push_out(pool)
        ended = weakref.ref(ours)
        del ours, _
        assert ended() is None
    finally:
        gc.enable()
    deadline = time.monotonic() + 30
    while True:  # a tier may be copying still
        stats = pool.stats()
        if stats.kept_bytes == (stats.tiers.host or stats.tiers.file).used_bytes == 0:
            break
        assert time.monotonic() < deadline, stats
        time.sleep(0.01)


def test_a_prompt_waits_for_what_parked_ones_give(pool):
    pairs = [conversation(pool, seed=seed) for seed in range(2)]
    for pair in pairs:
        pair[1].park()  # and nobody has copied anything yet
    pairs.append(conversation(pool, seed=2))
    more(pairs[2], seed=4)
    with pytest.raises(OutOfPages):
        filled(cache_for(model_of("llama"), pool), 1000, seed=1)
    pairs[2][1].park()
    more(pairs[0], seed=4)


def test_without_memory_it_stays_parked(pool):
    pair, other = conversation(pool), conversation(pool, seed=2)
    pair[1].park()
    push_out(pool)
    third = conversation(pool, seed=3)
    with pytest.raises(OutOfPages):
        filled(pair[1], 1, seed=4)
    assert not pair[1].ready
    third[1].park()
    more(pair, seed=5)
    more(other, seed=5)
    pair[1].park()
    more(third, seed=5)


@pytest.mark.skipif(ON_CUDA, reason="finds the file of the host driver's process")
@pytest.mark.parametrize("family", ["llama", "qwen2-mixed"])
def test_tokens_whose_copies_are_not_good_are_lost(tmp_path, family):
    with Pool("700KiB", nvme=f"{tmp_path}:8MiB") as pool:
        pair = conversation(pool, family)
        pair[1].park()
        push_out(pool)
        files = [f"/proc/self/fd/{fd}" for fd in os.listdir("/proc/self/fd")]
        [file] = [each for each in files if os.path.realpath(each).startswith(str(tmp_path))]
        with open(file, "r+b") as bytes_of_it:
            bytes_of_it.seek(3 * PAGE_BYTES)
            bytes_of_it.write(b"\0" * PAGE_BYTES)
            os.fsync(bytes_of_it.fileno())
        with pytest.raises(SequenceLost) as error:
            filled(pair[1], 1, seed=2)
        left = error.value.first_lost_token[0]
        assert pair[1].get_seq_length() == left < TOKENS
        if family == "llama":
            assert left % 64 == 0  # a page's first token
            pair[0].crop(left - TOKENS)
        else:
            assert left == 0
            pair[0].reset()
        for cache in pair:
            filled(cache, 10, seed=3)
        assert_same_states(pair[1], pair[0])


def test_bad_arguments_are_named(pool):
    _, ours = conversation(pool)
    with pytest.raises(InvalidArgument, match="category"):
        ours.park(category=3)
    with pytest.raises(InvalidArgument, match="idle_s is -1"):
        ours.park(idle_s=-1)
    with pytest.raises(InvalidArgument, match="priority"):
        ours.park(priority=10_000)
    with pytest.raises(InvalidArgument, match="by_s"):
        ours.prefetch(by_s=-1)
    with Pool("1MiB") as without:
        _, other = conversation(without)
        with pytest.raises(InvalidArgument, match="no tier"):
            other.park()
    KVCache(1, 1, 64, torch.float32, max_tokens=64, max_sequences=1, pool=pool, page_bytes=16 * PAGE_BYTES)
    with pytest.raises(InvalidArgument, match="page_bytes"):
        ours.park()
    filled(ours, 1, seed=2)  # it is as it was
