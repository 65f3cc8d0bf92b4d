"""Whatever way a model decodes, VmmCache gives bit for bit what DynamicCache gives."""

import pytest
import torch
from tiny import (
    FAMILIES,
    LAYERS,
    assert_in_place,
    assert_same_output,
    assert_same_states,
    bart,
    cache_for,
    compare,
    generate,
    left_padding,
    model_of,
    prompt,
)
from transformers import DynamicCache, EncoderDecoderCache

from vmm.integrations.transformers import VmmCache
from vmm.integrations.transformers.layer import VmmLayer
from vmm.integrations.transformers.sliding import VmmSlidingLayer


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("family", FAMILIES)
def test_greedy(pool, family, dtype):
    model, ids = model_of(family, dtype), prompt(20)
    cache = compare(model, pool, lambda cache: generate(model, cache, ids, max_new_tokens=60))
    assert cache.get_seq_length() == 79


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("family", FAMILIES)
def test_greedy_with_a_left_padded_batch(pool, family, dtype):
    model, ids = model_of(family, dtype), prompt(20, batch=3)
    compare(model, pool, lambda cache: generate(model, cache, ids, left_padding(ids), max_new_tokens=60))


def test_greedy_with_eager_attention(pool):
    model, ids = model_of(attention="eager"), prompt(20, batch=3)
    compare(model, pool, lambda cache: generate(model, cache, ids, left_padding(ids), max_new_tokens=60))


@pytest.mark.parametrize(
    ("family", "sliding"),
    [("llama", 0), ("mistral", 0), ("mistral-sliding", 3), ("qwen2-mixed", 1), ("gemma2", 2), ("gemma3", 2)],
)
def test_sliding_layers_are_in_our_memory_too(pool, family, sliding):
    cache = VmmCache(model_of(family).config, pool=pool)
    assert all(isinstance(layer, VmmLayer) for layer in cache.layers)
    assert sum(isinstance(layer, VmmSlidingLayer) for layer in cache.layers) == sliding
    assert cache.is_sliding == DynamicCache(config=model_of(family).config).is_sliding
    assert cache.stats().layers == LAYERS


def test_over_many_pages(pool):
    """400 tokens: seven pages of each head, mapped one by one."""
    model, ids = model_of(), prompt(10)
    cache = compare(model, pool, lambda cache: generate(model, cache, ids, max_new_tokens=390))
    assert cache.stats().mapped_bytes >= 7 * 4096 * 12


@pytest.mark.host_only
def test_with_the_default_page_size(pool):
    """A page of 64 KiB holds 1024 tokens here; the prompt needs three, decoding the fourth."""
    model, ids = model_of(), prompt(3065)

    def drive(cache):
        return generate(model, cache, ids, max_new_tokens=16)

    dynamic, cache = DynamicCache(config=model.config), VmmCache(model.config, pool=pool)
    assert_same_output(drive(cache), drive(dynamic))
    assert_same_states(cache, dynamic)
    assert cache.stats().mapped_bytes >= 4 * 65536 * 12


@pytest.mark.parametrize("family", ["llama", "qwen2-mixed"])
def test_beam_search(pool, family):
    """The cache is reordered at every step."""
    model, ids = model_of(family), prompt(20, batch=2)
    mask = left_padding(ids)
    compare(model, pool, lambda cache: generate(model, cache, ids, mask, num_beams=3, num_return_sequences=2))


def test_sampling(pool):
    model, ids = model_of(), prompt(20, batch=2)

    def drive(cache):
        torch.manual_seed(5)
        return generate(model, cache, ids, do_sample=True, top_k=0, temperature=1.5, num_return_sequences=2)

    compare(model, pool, drive)


def spy_on_crop(monkeypatch):
    removed = []
    crop = VmmCache.crop
    monkeypatch.setattr(VmmCache, "crop", lambda cache, tokens: (removed.append(tokens), crop(cache, tokens)))
    return removed


@pytest.mark.parametrize("family", ["llama", "qwen2-mixed"])
def test_prompt_lookup(pool, monkeypatch, family):
    removed = spy_on_crop(monkeypatch)
    model, ids = model_of(family), prompt(10).repeat(1, 3)
    compare(model, pool, lambda cache: generate(model, cache, ids, prompt_lookup_num_tokens=4))
    assert min(removed) < 0, "no candidate was refused, so nothing was tested"


def test_assisted_decoding(pool, monkeypatch):
    removed = spy_on_crop(monkeypatch)
    model, assistant, ids = model_of(), model_of(dtype=torch.bfloat16), prompt(20)
    compare(
        model, pool, lambda cache: generate(model, cache, ids, assistant_model=assistant, max_new_tokens=70)
    )
    assert min(removed) < 0
    assert max(removed) == 0, "no candidate was accepted in full"


def test_prefill_in_chunks(pool):
    model, ids = model_of(), prompt(150)

    def drive(cache):
        with torch.no_grad():
            for start, stop in [(0, 1), (1, 8), (8, 64), (64, 65), (65, 149)]:
                model(ids[:, start:stop], past_key_values=cache)
        return generate(model, cache, ids)

    compare(model, pool, drive)
    compare(model, pool, lambda cache: generate(model, cache, ids, prefill_chunk_size=40))


@pytest.mark.parametrize("batch", [1, 3])
def test_a_conversation_goes_on(pool, batch):
    model, ids = model_of(), prompt(20, batch)

    def drive(cache):
        answer = generate(model, cache, ids).sequences
        question = prompt(15, batch, seed=7)
        return generate(model, cache, torch.cat([answer, question], dim=1), max_new_tokens=60)

    compare(model, pool, drive)


def test_under_inference_mode_and_without(pool):
    """What was reserved under inference mode must be writable outside of it, and the other way round."""
    model, ids = model_of(), prompt(20)

    def drive(cache):
        with torch.inference_mode():
            model(ids, past_key_values=cache)
        with torch.no_grad():
            model(ids, past_key_values=cache)
        with torch.inference_mode():
            model(ids[:, :1], past_key_values=cache)
        return generate(model, cache, torch.cat([ids, ids, ids], dim=1))

    compare(model, pool, drive)


def test_encoder_decoder(pool):
    model, ids = bart(), prompt(20, batch=2)

    def drive(make_cache):
        cache = EncoderDecoderCache(make_cache(), make_cache())
        return generate(model, cache, ids, left_padding(ids), num_beams=2, max_new_tokens=70), cache

    expected, _ = drive(lambda: DynamicCache(config=model.config))
    output, cache = drive(lambda: cache_for(model, pool))
    assert_same_output(output, expected)
    assert_in_place(cache.self_attention_cache)
    assert_in_place(cache.cross_attention_cache)
    assert cache.get_seq_length() == 70
    assert cache.cross_attention_cache.get_seq_length() == 20
