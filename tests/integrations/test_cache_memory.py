"""Where a cache's memory comes from, where it goes, and what happens when there is none."""

import gc

import pytest
import torch
from tiny import (
    HEADS,
    LAYERS,
    PAGE_BYTES,
    PAGES,
    assert_same_output,
    assert_same_states,
    assert_unchanged,
    cache_for,
    eventually,
    filled,
    generate,
    model_of,
    pages_for,
    prompt,
    small_pool,
    snapshot,
    states,
)
from transformers import DynamicCache

from vmm import OutOfPages, Pool
from vmm.testing import settle


@pytest.fixture
def no_collector():
    gc.disable()
    yield
    gc.enable()


@pytest.mark.usefixtures("no_collector")
def test_a_dead_cache_gives_its_memory_back_and_the_next_adopts_it(pool):
    model, ids = model_of(), prompt(20)
    cache = cache_for(model, pool)
    expected = generate(model, cache, ids, max_new_tokens=60).sequences
    assert pool.stats().reservations_leased == 2 * LAYERS
    eventually(lambda: pool.stats().mapped_bytes == pages_for(79, ahead=1) * PAGE_BYTES)
    settle(pool)
    pool._core.trim(pool.stats().free_bytes)  # a GPU's pager may have created a reserve
    del cache
    eventually(lambda: pool.stats().reservations_leased == 0)
    first = pool.stats()
    assert (first.reservations_idle, first.kept_bytes) == (2 * LAYERS, 0)
    assert first.reclaimable_bytes == first.mapped_bytes == first.created_bytes > 0

    cache = cache_for(model, pool)
    assert torch.equal(generate(model, cache, ids, max_new_tokens=60).sequences, expected)
    second = pool.stats()
    assert second.reservations_adopted == first.reservations_adopted + 2 * LAYERS
    assert second.reservations_made == first.reservations_made
    assert second.created_bytes == first.created_bytes
    assert second.pages_created == first.pages_created


@pytest.mark.usefixtures("no_collector")
@pytest.mark.parametrize("batches", [(3, 3), (3, 1)], ids=str)
def test_reset_adopts_its_own_memory(pool, batches):
    cache = filled(cache_for(model_of(), pool), 70, batches[0])
    eventually(lambda: pool.stats().mapped_bytes == 3 * pages_for(70, ahead=1) * PAGE_BYTES)
    cache.reset()
    eventually(lambda: pool.stats().reservations_leased == 0)
    settle(pool)  # a GPU's pager may be creating a reserve
    before = pool.stats()
    filled(cache, 70, batches[1])
    assert pool.stats().reservations_adopted - before.reservations_adopted == 2 * LAYERS
    assert pool.stats().pages_created == before.pages_created


def test_a_forward_longer_than_the_past_grows_page_by_page(pool):
    cache = filled(cache_for(model_of(), pool), 10)
    kept = []
    for tokens in (54, 1, 200):
        filled(cache, tokens, seed=tokens)
        kept.append(pool.stats().kept_bytes // PAGE_BYTES)
    assert kept == [pages_for(64), pages_for(65), pages_for(265)]
    cache.crop(-201)
    assert pool.stats().kept_bytes == pages_for(64) * PAGE_BYTES


@pytest.mark.usefixtures("no_collector")
def test_views_outlive_the_cache(pool):
    model = model_of()
    cache = filled(cache_for(model, pool), 70)
    kept = [(layer.keys, layer.values[:, :, 10:]) for layer in cache.layers]
    wanted = [(keys.clone(), values.clone()) for keys, values in kept]
    del cache
    leased = pool.stats().reservations_leased
    assert leased == 2 * LAYERS
    successor = filled(cache_for(model, pool), 80, seed=40)
    assert pool.stats().reservations_leased == 2 * leased
    for layer in successor.layers:
        layer.keys.fill_(float("nan"))
    pool.trim()
    for (keys, values), (wanted_keys, wanted_values) in zip(kept, wanted, strict=True):
        assert torch.equal(keys, wanted_keys)
        assert torch.equal(values, wanted_values)
    del kept, keys, values, layer, successor
    eventually(lambda: pool.stats().reservations_leased == 0)


def test_views_outlive_reset_and_a_new_batch(pool):
    cache = filled(cache_for(model_of(), pool), 70, 2)
    before_reset = cache.layers[0].keys
    wanted = before_reset.clone()
    cache.reset()
    filled(cache, 70, 2, seed=40)
    before_selection = cache.layers[0].keys
    wanted_then = before_selection.clone()
    cache.batch_select_indices(torch.tensor([1, 0]))
    filled(cache, 5, 2, seed=50)
    assert torch.equal(before_reset, wanted)
    assert torch.equal(before_selection, wanted_then)


def test_views_outlive_the_pool():
    pool = Pool("16MiB")
    keys = filled(cache_for(model_of(), pool), 70).layers[0].keys
    wanted = keys.clone()
    pool.close()
    del pool
    gc.collect()
    assert torch.equal(keys, wanted)


def test_a_prompt_that_does_not_fit_changes_nothing():
    with small_pool(3 * PAGES - 1) as pool:
        model, cache = model_of(), cache_for(model_of(), pool)
        with pytest.raises(OutOfPages) as caught, torch.no_grad():
            model(prompt(150), past_key_values=cache)
        error = caught.value
        assert (error.asked, error.budget) == (3 * PAGES * PAGE_BYTES, pool.budget_bytes)
        assert error.free + error.reclaimable == pool.budget_bytes
        assert isinstance(error, MemoryError)
        assert cache.get_seq_length() == 0
        assert pool.stats().mapped_bytes == 0
        pool.check()
        ids = prompt(100)
        assert_same_output(
            generate(model, cache, ids), generate(model, DynamicCache(config=model.config), ids)
        )


@pytest.mark.parametrize(
    "shrink", [lambda cache: cache.crop(-200), lambda cache: cache.reset()], ids=["crop", "reset"]
)
def test_a_forward_that_no_longer_fits_changes_nothing(shrink):
    """It fitted before; meanwhile another cache has taken the memory."""
    with small_pool(5 * PAGES) as pool:
        cache, other = filled(cache_for(model_of(), pool), 260), cache_for(model_of(), pool)
        shrink(cache)
        filled(other, 190)
        other.update(states(10), states(10), 0)  # now there is room for some layers' pages, but not for all
        before = snapshot(cache)
        with pytest.raises(OutOfPages):
            filled(cache, 120 - cache.get_seq_length())
        assert_unchanged(cache, before)


def test_a_smaller_batch_after_one_that_does_not_fit():
    with small_pool(3 * PAGES) as pool:
        cache = cache_for(model_of(), pool)
        with pytest.raises(OutOfPages):
            filled(cache, 60, 4)
        filled(cache, 60, 3)
        assert_same_states(cache, filled(DynamicCache(config=model_of().config), 60, 3))
        pool.check()


def test_out_of_pages_while_decoding():
    """The cache is as before the token that found no page; once another cache is gone it goes on."""
    with small_pool(2 * PAGES) as pool:
        model, ids = model_of(), prompt(60)
        cache, other = cache_for(model, pool), filled(cache_for(model, pool), 30)
        with pytest.raises(OutOfPages):
            generate(model, cache, ids, max_new_tokens=10)
        assert [layer.get_seq_length() for layer in cache.layers] == [64] * LAYERS
        pool.check()

        longer = torch.cat([ids, prompt(10, seed=8)], dim=1)
        before = snapshot(cache)
        with pytest.raises(OutOfPages):
            generate(model, cache, longer, max_new_tokens=5)
        assert_unchanged(cache, before)
        del other
        resumed = generate(model, cache, longer, max_new_tokens=5)

        stock = DynamicCache(config=model.config)
        generate(model, stock, ids, max_new_tokens=5)
        assert_same_output(resumed, generate(model, stock, longer, max_new_tokens=5))
        pool.check()


@pytest.mark.usefixtures("no_collector")
def test_caches_in_reference_cycles_are_collected_before_giving_up():
    with small_pool(PAGES) as pool:
        garbage = [filled(cache_for(model_of(), pool), 60)]
        garbage.append(garbage)
        del garbage
        assert pool.stats().reservations_leased == 2 * LAYERS
        filled(cache_for(model_of(), pool), 60)


def test_layers_that_the_model_does_not_use_get_nothing():
    """As where a config counts layers of a head that predicts further tokens."""
    with small_pool(PAGES + 2 * HEADS) as pool:
        cache = cache_for(model_of(), pool)
        for tokens in (60, 40):
            for index in (0, 1):
                cache.update(states(tokens), states(tokens), index)
        assert pool.stats().kept_bytes == 2 * 4 * HEADS * PAGE_BYTES


def test_rows_that_do_not_fit_change_nothing():
    with small_pool(PAGES) as pool:
        cache = filled(cache_for(model_of(), pool), 60)
        before = snapshot(cache)
        with pytest.raises(OutOfPages):
            cache.batch_repeat_interleave(2)
        assert_unchanged(cache, before)
        pool.check()
