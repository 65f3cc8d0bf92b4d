"""Training through a cache: backward needs the past as it was, so what is recorded is never overwritten."""

import copy
import logging

import pytest
import torch
from tiny import (
    assert_in_place,
    assert_same_output,
    assert_same_states,
    cache_for,
    generate,
    model_of,
    prompt,
    states,
)
from transformers import DynamicCache

from vmm.integrations.transformers import VmmCache


def gradients_through(model, cache, *forwards):
    """Of the model's trained parameters, after the forwards and one backward; and the last logits."""
    model.zero_grad()
    logits = [run(model, cache) for run in forwards]
    sum((part**2).mean() for part in logits).backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}, logits[-1]


def forward(ids, grad=True):
    def run(model, cache):
        with torch.set_grad_enabled(grad):
            return model(ids, past_key_values=cache).logits

    return run


def trained(only=""):
    model = copy.deepcopy(model_of()).train()
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(only in name)
    return model


def assert_same_gradients(model, pool, *forwards):
    cache = cache_for(model, pool)
    expected, expected_logits = gradients_through(model, DynamicCache(config=model.config), *forwards)
    gradients, logits = gradients_through(model, cache, *forwards)
    assert gradients
    assert gradients.keys() == expected.keys()
    assert all(torch.equal(gradients[name], expected[name]) for name in expected)
    assert torch.equal(logits, expected_logits)
    return cache


@pytest.mark.parametrize("lengths", [(12, 5), (70, 1, 1)], ids=str)
def test_backward_through_cached_forwards(pool, lengths):
    model = trained()
    assert_same_gradients(model, pool, *(forward(prompt(length, 2, seed=length)) for length in lengths))


def test_backward_after_a_prefill_without_gradients(pool):
    ids = prompt(20, 2)
    assert_same_gradients(trained(), pool, forward(ids, grad=False), forward(ids), forward(ids))


@pytest.mark.parametrize("prefilled", [False, True], ids=["", "prefilled"])
@pytest.mark.parametrize("only", ["q_proj", "k_proj", "v_proj", "layers.2.", "lm_head"])
def test_backward_where_some_layers_record_nothing(pool, only, prefilled):
    """As with adapters: the first layer's keys need no gradient, but attention still saves them."""
    first = forward(prompt(20, 2), grad=not prefilled)
    assert_same_gradients(trained(only), pool, first, forward(prompt(5, 2)), forward(prompt(1, 2)))


def test_overwriting_what_was_recorded_is_an_error_not_a_wrong_gradient(pool):
    model, cache = trained("q_proj"), cache_for(model_of(), pool)
    loss = model(prompt(20), past_key_values=cache).logits.sum()
    assert cache.layers[0].growth is not None
    cache.crop(-5)
    loss = loss + model(prompt(5), past_key_values=cache).logits.sum()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_a_forward_that_records_falls_back(pool):
    model, ids = model_of(), prompt(20)
    ours, dynamic = cache_for(model, pool), DynamicCache(config=model.config)
    for cache in (ours, dynamic):
        model(ids, past_key_values=cache)
        model(ids[:, :3], past_key_values=cache)
    assert all(layer.growth is None for layer in ours.layers)
    assert_same_states(ours, dynamic)
    assert ours.stats().tokens == 0


def test_a_cache_in_use_falls_back_with_a_warning(pool, caplog):
    model, ids = model_of(), prompt(20)
    cache = cache_for(model, pool)
    generate(model, cache, ids, max_new_tokens=2)
    with caplog.at_level(logging.WARNING, logger="vmm"):
        model(ids, past_key_values=cache)
    assert "gradients are recorded" in caplog.text
    assert cache.get_seq_length() == 41
    assert cache.get_mask_sizes(1, 0) == (42, 0)


def fallen_back(pool):
    """A VmmCache and a DynamicCache of 8 tokens and 2 rows, in layers that record gradients."""
    caches = cache_for(model_of(), pool), DynamicCache(config=model_of().config)
    for cache in caches:
        for index in range(len(cache)):
            keys = states(8, 2, seed=index).requires_grad_()
            cache.update(keys * 2, keys * 3, index)
    return caches


@pytest.mark.parametrize(
    "change",
    [
        lambda cache: cache.crop(-3),
        lambda cache: cache.reorder_cache(torch.tensor([1, 0])),
        lambda cache: cache.batch_repeat_interleave(2),
        lambda cache: cache.batch_select_indices(torch.tensor([1])),
    ],
    ids=["crop", "reorder", "repeat", "select"],
)
def test_the_contract_after_falling_back(pool, change):
    ours, dynamic = fallen_back(pool)
    for cache in (ours, dynamic):
        change(cache)
    assert_same_states(ours, dynamic)


def test_reset_ends_the_fallback(pool):
    model, ids = model_of(), prompt(20)
    cache = cache_for(model, pool)
    model(ids, past_key_values=cache)
    cache.reset()
    output = generate(model, cache, ids)
    assert_same_output(output, generate(model, DynamicCache(config=model.config), ids))
    assert isinstance(cache, VmmCache)
    assert_in_place(cache)
