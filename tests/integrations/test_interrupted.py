"""A forward that fails between two layers: crop back to the length before it, and go on."""

import itertools

import pytest
import torch
from tiny import (
    HEADS,
    LAYERS,
    PAGES,
    WINDOW,
    assert_same_output,
    assert_same_states,
    assert_unchanged,
    cache_for,
    filled,
    generate,
    model_of,
    prompt,
    small_pool,
    snapshot,
    states,
)
from transformers import DynamicCache

from vmm import DriverError, OutOfPages
from vmm.integrations.transformers.layer import VmmLayer


def lengths(cache):
    return [layer.get_seq_length() for layer in cache.layers]


def before_layer(monkeypatch, cache, index, act):
    """act() once, when the cache's layer is about to be updated."""
    update = VmmLayer.update
    due = [act]

    def update_or_act(layer, *args, **kwargs):
        if due and layer is cache.layers[index]:
            due.pop()()
        return update(layer, *args, **kwargs)

    monkeypatch.setattr(VmmLayer, "update", update_or_act)


def interrupt(monkeypatch, model, cache, ids, index):
    """A forward that finds no page at this layer."""

    def refuse():
        raise OutOfPages("simulated")

    before_layer(monkeypatch, cache, index, refuse)
    with pytest.raises(OutOfPages), torch.no_grad():
        model(ids, past_key_values=cache)


@pytest.mark.parametrize("index", [1, 2])
def test_another_cache_takes_the_pages_meanwhile(monkeypatch, index):
    model, ids = model_of(), prompt(60)
    with small_pool(2 * PAGES + index * 2 * HEADS) as pool:
        cache, thief = cache_for(model, pool), cache_for(model, pool)
        generate(model, cache, ids, max_new_tokens=2)
        before = snapshot(cache)
        before_layer(monkeypatch, cache, index, lambda: filled(thief, 60))
        with pytest.raises(OutOfPages), torch.no_grad():
            model(prompt(10, seed=8), past_key_values=cache)
        assert thief.get_seq_length() == 60
        assert lengths(cache) == [71] * index + [61] * (LAYERS - index)
        cache.crop(-10)
        assert_unchanged(cache, before)
        pool.check()
        thief.reset()
        assert_goes_on(model, cache, ids)
        pool.check()


def assert_goes_on(model, cache, ids):
    """As a cache does that has seen only this prompt and an answer of two tokens."""
    stock = DynamicCache(config=model.config)
    generate(model, stock, ids, max_new_tokens=2)
    longer = torch.cat([ids, prompt(10, seed=9)], dim=1)
    assert_same_output(generate(model, cache, longer), generate(model, stock, longer))
    assert_same_states(cache, stock)


@pytest.mark.parametrize("tokens", [-3, -5, -12, -100])
def test_crop_by_other_lengths(pool, monkeypatch, tokens):
    """What counts is the longest layer's length."""
    model = model_of()
    cache = filled(cache_for(model, pool), 12)
    stock = filled(DynamicCache(config=model.config), 12)
    interrupt(monkeypatch, model, cache, prompt(4), 2)
    with torch.no_grad():
        model(prompt(4), past_key_values=stock)
    assert lengths(cache) == [16, 16, 12]
    cache.crop(tokens)
    stock.crop(tokens)
    wanted = max(0, 16 + tokens)
    assert lengths(cache) == [wanted, wanted, min(12, wanted)]
    for layer, stock_layer in zip(cache.layers[:2], stock.layers, strict=False):
        assert torch.equal(layer.keys, stock_layer.keys)


def test_the_first_forward(pool, monkeypatch):
    model = model_of("qwen2-mixed")
    cache, ids = cache_for(model, pool), prompt(6)
    interrupt(monkeypatch, model, cache, ids, 2)
    cache.crop(-cache.get_seq_length())
    assert lengths(cache) == [0, 0, 0]
    output = generate(model, cache, ids)
    assert_same_output(output, generate(model, DynamicCache(config=model.config), ids))


@pytest.mark.parametrize("past", [0, 4])
def test_sliding_layers_left_behind_lose_nothing(pool, past):
    cache = cache_for(model_of("qwen2-mixed"), pool)
    if past:
        filled(cache, past)
    before = snapshot(cache)
    cache.update(states(3), states(3), 0)
    cache.crop(-3)
    assert lengths(cache) == [past] * LAYERS
    assert_unchanged(cache, before)


@pytest.mark.parametrize(("past", "recording"), [(4, False), (4, True), (3 * WINDOW, True)], ids=str)
def test_sliding_layers_go_back_too(pool, monkeypatch, past, recording):
    """Past its window a sliding layer can only go back if it was told to record, as in assisted decoding."""
    model, ids = model_of("qwen2-mixed"), prompt(past)
    cache, stock = cache_for(model, pool), DynamicCache(config=model.config)
    for each in (cache, stock):
        if recording:
            each.activate_past_recording()
        with torch.no_grad():
            model(ids, past_key_values=each)
    interrupt(monkeypatch, model, cache, prompt(2), 2)
    assert lengths(cache) == [past + 2, past + 2, past]
    cache.crop(-2)
    with torch.no_grad():
        logits, wanted = (model(prompt(3), past_key_values=each).logits for each in (cache, stock))
    assert torch.equal(logits, wanted)
    assert lengths(cache) == lengths(stock)


def test_every_driver_call_may_fail_once():
    model = model_of()
    expected = filled(filled(DynamicCache(config=model.config), 60), 10, seed=20)
    for call in itertools.count(1):
        pool = small_pool(2 * PAGES)
        cache = cache_for(model, pool)
        pool._core.fail_at(call)
        for tokens, seed in ((60, 3), (10, 20)):
            fill_again_if_it_fails(cache, tokens, seed)
        assert_same_states(cache, expected)
        pool.check()
        failed = pool._core.last_failed
        pool.close()
        if not failed:
            break
    assert call > 2 * PAGES, "as many pages were created"


def fill_again_if_it_fails(cache, tokens, seed):
    before = cache.get_seq_length(LAYERS - 1)
    try:
        filled(cache, tokens, seed=seed)
    except (DriverError, OutOfPages):
        cache.crop(before - cache.get_seq_length())
        assert lengths(cache) == [before] * LAYERS
        filled(cache, tokens, seed=seed)


def test_admission_counts_for_the_attempt_only():
    """The driver fails after the admission; next time the pages are gone, and that must be found out before a
    layer has changed."""
    pool = small_pool(PAGES + 2 * HEADS)
    cache, other = cache_for(model_of(), pool), cache_for(model_of(), pool)
    pool._core.fail_at(1)
    with pytest.raises(DriverError):
        filled(cache, 60)
    filled(other, 60)
    with pytest.raises(OutOfPages):
        filled(cache, 60)
    assert lengths(cache) == [0, 0, 0]
    pool.check()
    pool.close()
