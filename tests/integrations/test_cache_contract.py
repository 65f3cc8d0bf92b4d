"""What Transformers and its users call on a cache besides update: the same answers as DynamicCache gives."""

import pytest
import torch
from cuda_standin import ON_CUDA
from tiny import (
    LAYERS,
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
    prompt,
    snapshot,
    states,
)
from transformers import DynamicCache, EncoderDecoderCache, Qwen3NextConfig

from vmm.integrations.transformers import VmmCache
from vmm.integrations.transformers.layer import VmmLayer


def test_what_it_is(pool):
    cache = cache_for(model_of(), pool)
    assert isinstance(cache, DynamicCache)
    assert len(cache) == LAYERS
    assert cache.is_croppable
    assert not cache.is_compileable
    assert not cache.is_initialized
    assert cache.is_sliding == [False] * LAYERS


def test_never_compiled_on_its_own(pool):
    """Linear-attention layers alone would say yes, and only DynamicCache itself is exempt by its type."""
    config = Qwen3NextConfig(num_hidden_layers=2, layer_types=["linear_attention"] * 2)
    assert DynamicCache(config=config).is_compileable
    assert not VmmCache(config, pool=pool).is_compileable


def test_lengths(pool):
    model = model_of()
    cache = cache_for(model, pool, max_tokens=500)
    assert cache.get_seq_length() == 0
    assert cache.get_mask_sizes(7, 0) == (7, 0)
    filled(cache, 5)
    assert [cache.get_seq_length(layer) for layer in range(LAYERS)] == [5] * LAYERS
    assert cache.get_mask_sizes(7, 1) == (12, 0)
    assert cache.get_max_length() == cache.get_max_length(2) == 500
    assert cache_for(model, pool).get_max_length() == model.config.max_position_embeddings
    assert cache.is_initialized


def test_update_returns_all_that_is_held(pool):
    cache = cache_for(model_of(), pool)
    first, second = states(5, seed=1), states(3, seed=2)
    cache.update(first, -first, 0)
    keys, values = cache.update(second, -second, 0)
    assert torch.equal(keys, torch.cat([first, second], dim=2))
    assert torch.equal(values, -keys)
    assert keys.stride(-1) == 1


def test_values_of_another_width(pool):
    """As in models with latent attention."""
    cache = cache_for(model_of(), pool)
    for start in range(0, 200, 40):
        keys, values = cache.update(states(40, dim=24, seed=start), states(40, heads=4, dim=8, seed=start), 0)
    assert (keys.shape, values.shape) == ((1, 2, 200, 24), (1, 4, 200, 8))
    assert torch.equal(keys[:, :, 40:80], states(40, dim=24, seed=40))
    assert torch.equal(values[:, :, 160:], states(40, heads=4, dim=8, seed=160))


def test_layers_of_two_kinds_are_reserved_once_each(pool):
    """The first layer's kind is a guess for the others, and is not repeated where a layer proves it wrong."""
    cache = cache_for(model_of(), pool)
    for index, heads in enumerate((2, 4, 2)):
        keys = states(5, heads=heads, seed=index)
        assert torch.equal(cache.update(keys, keys, index)[0], keys)
    stats = pool.stats()
    assert stats.reservations_made + stats.reservations_adopted == 2 * LAYERS + 2


def test_iteration(pair):
    dynamic, cache = pair
    entries = list(cache)
    assert len(entries) == LAYERS
    for (keys, values, window), (wanted_keys, wanted_values, _) in zip(entries, dynamic, strict=True):
        assert torch.equal(keys, wanted_keys)
        assert torch.equal(values, wanted_values)
        assert window is None


@pytest.mark.parametrize("tokens", [-1, -6, -69, -70, -71, -1000, 0])
def test_crop(pair, tokens):
    for cache in pair:
        cache.crop(tokens)
    assert_same_states(*reversed(pair))
    append_to(pair, 66)
    assert_same_states(*reversed(pair))


def test_crop_of_what_was_appended_within_a_page(pair):
    """The engine is asked once a page, so it has not heard of these tokens."""
    for _ in range(3):
        append_to(pair)
    for cache in pair:
        cache.crop(-2)
    append_to(pair, 1, seed=60)
    assert_same_states(*reversed(pair))


def test_crop_to_a_length_is_refused_as_stock_does(pair):
    for cache in pair:
        before = snapshot(cache)
        with pytest.raises(ValueError, match="positive value"):
            cache.crop(3)
        assert_unchanged(cache, before)


def test_crop_of_an_empty_cache(pool):
    cache = cache_for(model_of(), pool)
    cache.crop(-3)
    cache.crop(0)
    assert cache.get_seq_length() == 0


def test_reset_and_use_with_another_batch(pool):
    model, cache = model_of(), cache_for(model_of(), pool)
    generate(model, cache, prompt(20, batch=3))
    cache.reset()
    assert cache.get_seq_length() == 0
    assert not cache.is_initialized
    ids = prompt(30, batch=2)
    assert_same_output(generate(model, cache, ids), generate(model, DynamicCache(config=model.config), ids))
    assert_in_place(cache)


def test_an_emptied_cache_takes_another_batch(pool):
    """DynamicCache holds nothing either after a crop to nothing, but remembers the batch."""
    cache = filled(cache_for(model_of(), pool), 5, 3)
    cache.crop(-5)
    filled(cache, 6, 2)
    assert_same_states(cache, filled(DynamicCache(config=model_of().config), 6, 2))


@pytest.mark.parametrize(
    ("heads", "dim"), [(2, 16), ([2, 4, 1], [16, 8, 32])], ids=["alike", "each layer its own"]
)
def test_early_initialization(pool, heads, dim):
    cache = cache_for(model_of(), pool)
    cache.early_initialization(2, heads, dim, torch.bfloat16, torch.device("cpu"))
    assert cache.is_initialized
    assert cache.get_seq_length() == 0
    heads, dim = ([2] * 3, [16] * 3) if dim == 16 else (heads, dim)
    for index, layer in enumerate(cache.layers):
        assert layer.keys.shape == (2, heads[index], 0, dim[index])
        keys = states(5, 2, heads=heads[index], dim=dim[index], dtype=torch.bfloat16, seed=index)
        assert torch.equal(cache.update(keys, keys, index)[0], keys)


def test_early_initialization_then_generate(pool):
    """Stock layers take any batch afterwards."""
    ids = prompt(20, batch=3)

    def drive(cache):
        cache.early_initialization(1, 2, 16, torch.float32, torch.device("cpu"))
        return generate(model_of(), cache, ids, left_padding(ids))

    compare(model_of(), pool, drive)


def test_in_an_encoder_decoder_cache(pair, pool):
    cross = filled(cache_for(model_of(), pool), 9, 3, seed=9)
    ours = EncoderDecoderCache(pair[1], cross)
    assert (len(ours), ours.get_seq_length(), ours.is_updated[0]) == (LAYERS, 70, True)
    ours.crop(-1)
    assert (ours.get_seq_length(), cross.get_seq_length()) == (69, 9)
    ours.batch_select_indices(torch.tensor([2, 1]))
    stock = EncoderDecoderCache(pair[0], filled(DynamicCache(config=model_of().config), 9, 3, seed=9))
    stock.crop(-1)
    stock.batch_select_indices(torch.tensor([2, 1]))
    for entry, wanted in zip(ours, stock, strict=True):
        for part, wanted_part in zip(entry, wanted, strict=True):
            assert part is wanted_part is None or torch.equal(part, wanted_part)
    ours.reset()
    assert (ours.get_seq_length(), cross.get_seq_length()) == (0, 0)


def test_stats(pair):
    stats = pair[1].stats()
    assert (stats.tokens, stats.layers, stats.layout) == (
        70,
        LAYERS,
        "token-major" if ON_CUDA else "head-major",
    )
    assert stats.live_bytes == LAYERS * 2 * 3 * 2 * 70 * 16 * 4
    pages = 3 if ON_CUDA else 2 * 2  # for 70 tokens of one row's K: one extent, or one for each head
    assert stats.mapped_bytes >= LAYERS * 2 * 3 * pages * 4096
    assert sum(isinstance(layer, VmmLayer) for layer in pair[1].layers) == stats.layers
