"""Bad input is refused with the argument's name, and changes nothing."""

import pytest
import torch
from tiny import (
    LAYERS,
    assert_same_states,
    assert_unchanged,
    cache_for,
    filled,
    generate,
    model_of,
    prompt,
    snapshot,
    states,
)
from transformers import DynamicCache, PreTrainedConfig

from vmm import Closed, InvalidArgument, Pool
from vmm.integrations.transformers import VmmCache


def refused(argument):
    return pytest.raises(InvalidArgument, match=rf"^{argument}\b")


@pytest.mark.parametrize("config", [None, {}, "llama", 7, torch.nn.Linear(1, 1)], ids=repr)
def test_config(config):
    with refused("config"):
        VmmCache(config)


def test_a_model_is_not_its_config():
    with refused("config"):
        VmmCache(model_of())


@pytest.mark.parametrize("max_tokens", [0, -1, 2**31, 2**80, True, False, 10.0, "10"], ids=repr)
def test_max_tokens(pool, max_tokens):
    with refused("max_tokens"):
        VmmCache(model_of().config, max_tokens, pool=pool)


def test_max_tokens_that_the_config_does_not_say(pool):
    with refused("max_tokens"):
        VmmCache(PreTrainedConfig(), pool=pool)


@pytest.mark.filterwarnings("ignore:max_tokens:RuntimeWarning")
def test_max_tokens_is_address_space_only(pool):
    cache = filled(VmmCache(model_of().config, 2**30, pool=pool), 10)
    assert_same_states(cache, filled(DynamicCache(config=model_of().config), 10))
    assert pool.stats().mapped_bytes <= 64 * 65536


@pytest.mark.parametrize(
    "budget", ["12 XB", "", "GiB", "-1GiB", "0", 0, -1, True, 1.5, "4000000TiB"], ids=repr
)
def test_budget(budget):
    with refused("budget"):
        VmmCache(model_of().config, budget=budget)


def test_budget_and_pool(pool):
    with refused("budget and pool"):
        VmmCache(model_of().config, budget="1MiB", pool=pool)


@pytest.mark.parametrize("other", [1, "pool", object, Pool], ids=repr)
def test_pool(other):
    with refused("pool"):
        VmmCache(model_of().config, pool=other)


@pytest.mark.parametrize(
    "page_bytes", [0, 1, 1000, 2048, 4097, 12288, -4096, 2**70, 4096.0, "4096", True], ids=repr
)
def test_page_bytes(pool, page_bytes):
    with refused("page_bytes"):
        VmmCache(model_of().config, pool=pool, page_bytes=page_bytes)


def test_a_budget_makes_a_pool():
    cache = VmmCache(model_of().config, budget="2MiB")
    assert cache.pool.budget_bytes == 2 * 2**20
    cache.pool.close()


GOOD = {"tokens": 3, "batch": 2}
BAD_KEYS = {
    "another batch": {"batch": 1},
    "other heads": {"heads": 1},
    "another width": {"dim": 8},
    "another type": {"dtype": torch.bfloat16},
    "integers": {"dtype": torch.int32},
}


@pytest.fixture
def cache(pool):
    return filled(cache_for(model_of(), pool), 5, 2)


@pytest.mark.parametrize("bad", BAD_KEYS.values(), ids=BAD_KEYS)
@pytest.mark.parametrize("which", ["key_states", "value_states"])
def test_states_unlike_those_before(cache, which, bad):
    good, bad = states(**GOOD), states(**(GOOD | bad))
    before = snapshot(cache)
    with refused(which):
        cache.update(*((bad, good) if which == "key_states" else (good, bad)), 0)
    assert_unchanged(cache, before)
    assert_goes_on(cache)


def assert_goes_on(cache):
    filled(cache, 3, 2, seed=20)
    assert_same_states(cache, filled(filled(DynamicCache(config=model_of().config), 5, 2), 3, 2, seed=20))


@pytest.mark.parametrize("tokens", [2, 4, 0])
def test_values_for_another_number_of_tokens(cache, tokens):
    before = snapshot(cache)
    with refused("value_states"):
        cache.update(states(3, 2), states(tokens, 2), 1)
    assert_unchanged(cache, before)
    assert_goes_on(cache)


@pytest.mark.parametrize(
    ("keys", "values", "argument"),
    [
        (states(5, 3), states(4, 3), "value_states"),
        (states(5, 3).int(), states(5, 3).int(), "dtype"),
        (states(5, 3), states(5, 3).bool(), "dtype"),
        (states(5, 3).to("meta"), states(5, 3).to("meta"), "device"),
        (states(5, 3), states(5, 3).to("meta"), "device"),
        (states(101, 3), states(101, 3), "max_tokens"),
    ],
    ids=["counts", "integers", "booleans", "device", "device of the values", "too many"],
)
def test_refused_at_first_is_forgotten(pool, keys, values, argument):
    """The next attempt may be of another shape."""
    cache = cache_for(model_of(), pool, max_tokens=100)
    with refused(argument):
        cache.update(keys, values, 0)
    assert cache.get_seq_length() == 0
    filled(cache, 5, 2)
    assert_goes_on(cache)


def test_growth_past_max_tokens(pool):
    model, ids = model_of(), prompt(20)
    cache, stock = cache_for(model, pool, max_tokens=30), DynamicCache(config=model.config)
    with refused("max_tokens is 30; the cache would grow to 31"):
        generate(model, cache, ids)
    generate(model, stock, ids, max_new_tokens=11)
    assert_same_states(cache, stock)
    before = snapshot(cache)
    with refused("max_tokens"), torch.no_grad():
        model(prompt(1), past_key_values=cache)
    assert_unchanged(cache, before)
    for each in (cache, stock):
        each.crop(-8)
        filled(each, 8)
    assert_same_states(cache, stock)


def test_a_write_that_fails_leaves_nothing_behind(cache):
    before = snapshot(cache)
    with pytest.raises(NotImplementedError):
        cache.update(states(3, 2), states(3, 2).to("meta"), 0)
    assert_unchanged(cache, before)
    beyond = cache.layers[0]._key_space[:, :, 5:8]
    assert torch.equal(beyond, torch.zeros_like(beyond))
    assert_goes_on(cache)


def test_a_closed_pool_is_refused_at_first_use():
    pool = Pool("1MiB")
    pool.close()
    cache = cache_for(model_of(), pool)
    with pytest.raises(Closed):
        filled(cache)
    assert cache.get_seq_length() == 0


def test_a_pool_closed_under_a_cache(cache):
    """What is mapped goes on working; more there is not."""
    cache.pool.close()
    assert_goes_on(cache)
    before = snapshot(cache)
    with pytest.raises(Closed):
        filled(cache, 500, 2)
    assert_unchanged(cache, before)
    assert [layer.get_seq_length() for layer in cache.layers] == [8] * LAYERS
