"""Rows and copies share the pages of the tokens that they have in common, and never see each other's own."""

import copy

import pytest
import torch
from cuda_standin import ON_CUDA
from tiny import (
    EXTENTS,
    HEADS,
    LAYERS,
    PAGE_BYTES,
    append_to,
    assert_in_place,
    assert_same_output,
    assert_same_states,
    assert_unchanged,
    cache_for,
    compare,
    filled,
    generate,
    left_padding,
    model_of,
    pages_for,
    prompt,
    small_pool,
    snapshot,
    states,
)
from transformers import DynamicCache

from vmm import MappingLimit, OutOfPages
from vmm.integrations.transformers.layer import VmmLayer
from vmm.testing import settle

PAGE_TOKENS = 64 * EXTENTS // HEADS


def whole_pages(tokens):
    """Of one row."""
    return LAYERS * 2 * EXTENTS * (tokens // PAGE_TOKENS)


def saved_pages(pool):
    settle(pool)
    return pool.stats().saved_bytes // PAGE_BYTES


def kept_pages(pool):
    settle(pool)
    return pool.stats().kept_bytes // PAGE_BYTES


@pytest.mark.parametrize("tokens", [5, 64, 130, 150])
def test_repeated_rows_share_whole_pages(pool, tokens):
    stock, cache = (
        filled(DynamicCache(config=model_of().config), tokens),
        filled(cache_for(model_of(), pool), tokens),
    )
    for each in (stock, cache):
        each.batch_repeat_interleave(3)
    assert saved_pages(pool) == 2 * whole_pages(tokens)
    assert kept_pages(pool) == pages_for(tokens) + 2 * (pages_for(tokens) - whole_pages(tokens))
    append_to([stock, cache], 70)
    assert_same_states(cache, stock)


def test_selected_rows_share_whole_pages(pair, pool):
    for cache in pair:
        cache.batch_select_indices(torch.tensor([2, 0, 2, 2]))
    assert saved_pages(pool) == 2 * whole_pages(70)
    append_to(pair, 70, batch=4)
    assert_same_states(*reversed(pair))


def test_deep_copies_share_whole_pages_and_go_separate_ways(pool):
    model = model_of()
    cache, stock = filled(cache_for(model, pool), 150), filled(DynamicCache(config=model.config), 150)
    copies = [(copy.deepcopy(cache), copy.deepcopy(stock)) for _ in range(3)]
    assert saved_pages(pool) == 3 * whole_pages(150)
    before = snapshot(cache)
    for seed, pair in enumerate(copies):
        append_to(pair, 70, batch=1, seed=seed)
    assert_unchanged(cache, before)
    for ours, theirs in copies:
        assert_same_states(ours, theirs)
    append_to([cache, stock], 70, batch=1, seed=99)
    assert_same_states(cache, stock)
    for ours, theirs in copies:
        assert_same_states(ours, theirs)


@pytest.mark.parametrize("first", ["the original", "the copy"])
def test_whoever_ends_first_leaves_the_pages_to_the_other(pool, first):
    cache = filled(cache_for(model_of(), pool), 150)
    twin, before = copy.deepcopy(cache), snapshot(cache)
    if first == "the original":
        cache = twin
    del twin
    successor = filled(cache_for(model_of(), pool), 150, seed=40)
    assert_unchanged(cache, before)
    assert saved_pages(pool) == 0
    append_to([cache], 70, batch=1)
    assert_unchanged(successor, snapshot(filled(DynamicCache(config=model_of().config), 150, seed=40)))


@pytest.mark.parametrize("remove", [1, 22, 23, 90, 149, 150])
@pytest.mark.parametrize("cut", [0, 1])
def test_a_crop_into_shared_pages(pool, cut, remove):
    """What is written then is the cropped cache's alone."""
    model = model_of()
    ours, theirs = (
        [filled(cache, 150, 2)] for cache in (cache_for(model, pool), DynamicCache(config=model.config))
    )
    for pair in (ours, theirs):
        pair.append(copy.deepcopy(pair[0]))
        pair[cut].crop(-remove)
    append_to([ours[cut], theirs[cut]], 100, batch=2)
    for cache, stock in zip(ours, theirs, strict=True):
        assert_same_states(cache, stock)


@pytest.mark.host_only  # as small_pool is
def test_a_crop_that_finds_no_page_changes_nothing():
    pages = pages_for(128) + 2 * EXTENTS  # enough to copy the last pages of one layer
    with small_pool(pages) as pool:
        cache = filled(cache_for(model_of(), pool), 128)
        twin, before = copy.deepcopy(cache), snapshot(cache)
        with pytest.raises(OutOfPages):
            twin.crop(-1)
        assert_unchanged(twin, before)
        assert_unchanged(cache, before)
        pool.check()
        del cache
        twin.crop(-1)
        append_to([twin], 1, batch=1)
        assert twin.get_seq_length() == 128
        pool.check()


@pytest.mark.host_only  # as small_pool is
def test_a_copy_that_does_not_fit_changes_nothing():
    with small_pool(pages_for(70) + 2 * EXTENTS) as pool:
        cache = filled(cache_for(model_of(), pool), 70)
        before = snapshot(cache)
        with pytest.raises(OutOfPages):
            copy.deepcopy(cache)
        with pytest.raises(OutOfPages):
            cache.batch_repeat_interleave(2)
        assert_unchanged(cache, before)
        pool.check()


def test_samples_of_one_prompt_are_stored_once(pool):
    model, ids = model_of(), prompt(150)

    def drive(cache):
        torch.manual_seed(5)
        return generate(model, cache, ids, do_sample=True, top_k=0, temperature=1.5, num_return_sequences=4)

    cache = compare(model, pool, drive)
    assert saved_pages(pool) == 3 * whole_pages(150)
    assert cache.get_seq_length() == 173


def test_samples_of_several_prompts(pool):
    model, ids = model_of(), prompt(150, batch=2)

    def drive(cache):
        torch.manual_seed(5)
        return generate(
            model,
            cache,
            ids,
            left_padding(ids),
            do_sample=True,
            top_k=0,
            temperature=1.5,
            num_return_sequences=3,
        )

    cache = compare(model, pool, drive)
    assert saved_pages(pool) == 4 * whole_pages(150)
    del cache


@pytest.mark.host_only  # as small_pool is
def test_what_samples_share_fits_where_they_would_not():
    """Memory for one prompt and the last page of the others."""
    last = pages_for(150) - whole_pages(150)
    with small_pool(pages_for(150) + 3 * last) as pool:
        cache, stock = cache_for(model_of(), pool), DynamicCache(config=model_of().config)
        for index in range(LAYERS):
            keys = states(150, seed=index).expand(4, -1, -1, -1)
            for each in (cache, stock):
                each.update(keys, -keys, index)
        assert_same_states(cache, stock)
        append_to([cache, stock], 10, batch=4)
        assert_same_states(cache, stock)
        before = snapshot(cache)
        with pytest.raises(OutOfPages):
            append_to([cache], 150, batch=4)
        cache.crop(160 - cache.get_seq_length())
        assert_unchanged(cache, before)
        pool.check()


@pytest.mark.host_only  # as small_pool is
def test_a_prompt_of_samples_that_does_not_fit_changes_nothing():
    last = pages_for(150) - whole_pages(150)
    with small_pool(pages_for(150) + 3 * last - 1) as pool:
        cache = cache_for(model_of(), pool)
        keys = states(150).expand(4, -1, -1, -1)
        with pytest.raises(OutOfPages):
            cache.update(keys, keys, 0)
        assert cache.get_seq_length() == 0
        assert kept_pages(pool) == 0
        pool.check()


def test_later_chunks_that_are_alike(pool):
    """Rows that differ in their first tokens share what lies after them."""
    cache, stock = cache_for(model_of(), pool), DynamicCache(config=model_of().config)
    append_to([cache, stock], 70)
    for seed in (1, 2):
        for index in range(LAYERS):
            keys = states(100, seed=seed + index).expand(3, -1, -1, -1)
            for each in (cache, stock):
                each.update(keys, keys.flip(-1), index)
    assert saved_pages(pool) > 0
    assert_same_states(cache, stock)
    order = torch.tensor([2, 0, 1])
    for each in (cache, stock):
        each.reorder_cache(order)
        each.crop(-150)
    append_to([cache, stock], 90)
    assert_same_states(cache, stock)


@pytest.mark.parametrize("family", ["llama", "qwen2"])
@pytest.mark.parametrize("batch", [1, 2])
def test_beam_search_over_many_pages(pool, family, batch):
    model, ids = model_of(family), prompt(70, batch=batch)
    mask = left_padding(ids)
    cache = compare(
        model, pool, lambda each: generate(model, each, ids, mask, num_beams=4, max_new_tokens=150)
    )
    assert len(cache.layers[0].keys) == 4 * batch
    assert saved_pages(pool) >= batch * 3 * whole_pages(70)


def test_diverse_beams_that_are_sampled(pool):
    model, ids = model_of(), prompt(70)

    def drive(cache):
        torch.manual_seed(3)
        return generate(model, cache, ids, num_beams=4, do_sample=True, temperature=2.0, max_new_tokens=100)

    compare(model, pool, drive)


ORDERS = [[1, 0, 3, 2], [1, 2, 3, 0], [0, 0, 1, 1], [3, 3, 3, 3], [2, 1, 1, 0]]


def test_orders_one_after_another(pool):
    stock, cache = (
        filled(each, 150, 4) for each in (DynamicCache(config=model_of().config), cache_for(model_of(), pool))
    )
    for step, order in enumerate(ORDERS * 4):
        for each in (stock, cache):
            each.reorder_cache(torch.tensor(order))
        append_to([stock, cache], 7, batch=4, seed=step)
        assert_same_states(cache, stock)
    assert_in_place(cache)


def test_a_new_order_of_rows_that_share_their_pages_maps_nothing(pool):
    cache = filled(cache_for(model_of(), pool), 150)
    cache.batch_repeat_interleave(4)
    append_to([cache], 1, batch=4)
    settle(pool)
    before, addresses = pool.stats(), [layer.keys.data_ptr() for layer in cache.layers]
    for order in ORDERS:
        cache.reorder_cache(torch.tensor(order))
    after = pool.stats()
    assert (after.pages_unmapped, after.reservations_made) == (
        before.pages_unmapped,
        before.reservations_made,
    )
    assert [layer.keys.data_ptr() for layer in cache.layers] == addresses


def test_rows_that_come_to_share_free_memory(pool):
    cache = filled(cache_for(model_of(), pool), 150, 4)
    assert kept_pages(pool) == 4 * pages_for(150)
    cache.reorder_cache(torch.tensor([2, 2, 2, 2]))
    assert kept_pages(pool) == pages_for(150) + 3 * (pages_for(150) - whole_pages(150))


def test_without_mappings_left_it_copies(pool, monkeypatch):
    def refuse(*_):
        raise MappingLimit("simulated")

    stock, cache = (
        filled(each, 150, 3) for each in (DynamicCache(config=model_of().config), cache_for(model_of(), pool))
    )
    monkeypatch.setattr(VmmLayer, "prepare_move", refuse)
    monkeypatch.setattr(VmmLayer, "_take_rows", refuse)
    for each in (stock, cache):
        each.reorder_cache(torch.tensor([2, 0, 0]))
    twin = copy.deepcopy(cache)
    assert saved_pages(pool) == 0
    append_to([stock, cache], 70)
    append_to([twin], 70)
    assert_same_states(cache, stock)
    assert_same_states(twin, stock)


@pytest.mark.skipif(ON_CUDA, reason="there one layout is enough")
def test_rows_of_another_layout_are_copied(pool, monkeypatch):
    from vmm.integrations.transformers.memory import CacheMemory

    stock, cache = (
        filled(each, 150) for each in (DynamicCache(config=model_of().config), cache_for(model_of(), pool))
    )
    monkeypatch.setattr(CacheMemory, "layout", lambda memory, batch, heads: "token-major")
    for each in (stock, cache):
        each.batch_repeat_interleave(2)
    assert saved_pages(pool) == 0
    append_to([stock, cache], 70, batch=2)
    assert_same_states(cache, stock)


def test_prefix_reuse_of_a_long_prefix(pool):
    model, prefix = model_of(), prompt(150)
    ours, dynamic = cache_for(model, pool), DynamicCache(config=model.config)
    with torch.no_grad():
        for cache in (ours, dynamic):
            model(prefix, past_key_values=cache)
    before = snapshot(ours)
    for seed in (11, 12, 13):
        ids = torch.cat([prefix, prompt(6, seed=seed)], dim=1)
        options = {"num_return_sequences": 1, "max_new_tokens": 80}
        output = generate(model, copy.deepcopy(ours), ids, **options)
        assert_same_output(output, generate(model, copy.deepcopy(dynamic), ids, **options))
    assert_unchanged(ours, before)
