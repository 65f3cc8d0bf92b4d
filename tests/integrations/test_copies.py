"""Copies of a cache and of its views: deepcopy, pickle and torch.save hold the live part and no more."""

import copy
import io
import pickle

import pytest
import torch
from tiny import (
    DIM,
    HEADS,
    LAYERS,
    assert_in_place,
    assert_same_output,
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
from transformers import DynamicCache

from child import run_child
from vmm.integrations.transformers import VmmCache

LIVE_BYTES = LAYERS * 2 * HEADS * 70 * DIM * 4  # of a cache of 70 tokens


def saved(thing):
    file = io.BytesIO()
    torch.save(thing, file)
    return file.getvalue()


def through_torch_save(thing):
    return torch.load(io.BytesIO(saved(thing)), weights_only=False)


def through_pickle(thing):
    return pickle.loads(pickle.dumps(thing))


ROUND_TRIPS = pytest.mark.parametrize("round_trip", [copy.deepcopy, through_pickle, through_torch_save])


@ROUND_TRIPS
def test_the_copy_and_the_original_go_separate_ways(pool, round_trip):
    model = model_of()
    cache = filled(cache_for(model, pool, max_tokens=300), 70, 2)
    twin = round_trip(cache)
    assert type(twin) is VmmCache
    assert_same_states(twin, cache)
    filled(cache, 3, 2, seed=20)
    twin.crop(-1)
    filled(twin, 4, 2, seed=30)
    stock = filled(DynamicCache(config=model.config), 70, 2)
    other = copy.deepcopy(stock)
    assert_same_states(cache, filled(stock, 3, 2, seed=20))
    other.crop(-1)
    assert_same_states(twin, filled(other, 4, 2, seed=30))
    assert twin.get_max_length() == 300
    assert_in_place(twin)


@ROUND_TRIPS
def test_an_empty_cache(pool, round_trip):
    twin = round_trip(cache_for(model_of(), pool))
    assert twin.get_seq_length() == 0
    assert_same_states(filled(twin), filled(cache_for(model_of(), pool)))


@ROUND_TRIPS
def test_a_cache_with_sliding_layers(pool, round_trip):
    model, ids = model_of("qwen2-mixed"), prompt(20)

    def drive(cache, copies):
        generate(model, cache, ids[:, :12], max_new_tokens=1)
        return [generate(model, copies(cache), ids), generate(model, cache, ids)]

    expected = drive(DynamicCache(config=model.config), copy.deepcopy)
    for output, wanted in zip(drive(cache_for(model, pool), round_trip), expected, strict=True):
        assert_same_output(output, wanted)


def test_deepcopy_stays_in_the_pool_and_pickle_goes_to_the_default_one(pool):
    cache = filled(cache_for(model_of(), pool))
    assert copy.deepcopy(cache).pool is pool
    assert through_pickle(cache).pool is not pool


def test_deepcopy_in_a_larger_object_is_one_copy(pool):
    cache = filled(cache_for(model_of(), pool))
    keys = cache.layers[0].keys
    first, second, view, same_view = copy.deepcopy([cache, cache, keys, keys])
    assert first is second is not cache
    assert view is same_view is not keys


def test_prefix_reuse(pool):
    """The documented recipe: a prefix is cached once, and each prompt goes on with a deep copy of it."""
    model, prefix = model_of(), prompt(70)
    ours, dynamic = cache_for(model, pool), DynamicCache(config=model.config)
    with torch.no_grad():
        model(prefix, past_key_values=ours)
        model(prefix, past_key_values=dynamic)
    before = snapshot(ours)
    for seed in (11, 12, 13):
        ids = torch.cat([prefix, prompt(6, seed=seed)], dim=1)
        output = generate(model, copy.deepcopy(ours), ids)
        assert_same_output(output, generate(model, copy.deepcopy(dynamic), ids))
    assert_unchanged(ours, before)


def test_pickles_hold_the_live_part_only(pool):
    cache = filled(cache_for(model_of(), pool), 70)
    for pickled in (pickle.dumps(cache), saved(cache)):
        assert LIVE_BYTES <= len(pickled) < LIVE_BYTES + 20_000
    one_tensor = LIVE_BYTES // LAYERS // 2
    for pickled in (pickle.dumps(cache.layers[0].keys), saved(cache.layers[0].keys)):
        assert one_tensor <= len(pickled) < one_tensor + 4_000


@ROUND_TRIPS
def test_the_copy_of_a_view_is_an_ordinary_tensor(pool, round_trip):
    keys = filled(cache_for(model_of(), pool), 70, 2).layers[1].keys
    twin = round_trip(keys)
    assert type(twin) is torch.Tensor
    assert torch.equal(twin, keys)
    assert twin.untyped_storage().nbytes() == keys.numel() * 4
    assert twin.data_ptr() != keys.data_ptr()


VIEWS = [
    "keys",
    "keys[:, :, :5]",
    "keys[0]",
    "keys[None, ..., 0, :]",
    "keys.detach()",
    "keys.transpose(1, 2)",
    "keys.narrow(2, 1, 3)",
    "keys[0].transpose(0, 1)[2:4]",
]


def test_copying_a_view_never_ends_the_process():
    """The stock ways walk the whole storage, of which next to nothing is mapped."""
    child = run_child(f"""
        import copy, io, pickle, torch
        from transformers import LlamaConfig
        from vmm.integrations.transformers import VmmCache

        cache = VmmCache(LlamaConfig(num_hidden_layers=1), max_tokens=100_000, budget="16MiB")
        states = torch.randn(2, 4, 10, 16)
        cache.update(states, states, 0)
        keys = cache.layers[0].keys
        for view in {VIEWS}:
            print(view, flush=True)
            view, wanted = eval(view), eval(view, {{"keys": states}})
            assert torch.equal(copy.deepcopy(view), wanted)
            assert torch.equal(pickle.loads(pickle.dumps(view)), wanted)
            file = io.BytesIO()
            torch.save(view, file)
            assert len(file.getvalue()) < 4 * wanted.numel() + 4_000
        print("survived")
    """)
    assert child.returncode == 0, (child.stdout, child.stderr)
    assert child.stdout.endswith("survived\n")


@ROUND_TRIPS
def test_layers_that_fell_back_come_along(pool, round_trip):
    cache = filled(cache_for(model_of(), pool), 5)
    keys = states(2, seed=9).requires_grad_()
    cache.update(keys * 2, keys * 3, 1)
    twin = round_trip(cache)
    assert torch.equal(twin.layers[1].keys, cache.layers[1].keys)
    assert torch.equal(twin.layers[1].values, cache.layers[1].values)
    assert torch.equal(twin.layers[2].keys, cache.layers[2].keys)
    assert_in_place(twin)
    assert twin.layers[1].keys.requires_grad is False
