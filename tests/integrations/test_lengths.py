"""Caches of different lengths share reservations: a longer idle extent serves a shorter cache."""

import random
import warnings

import pytest
import torch
from cuda_standin import ON_CUDA
from own_pool import int32
from tiny import (
    DIM,
    HEADS,
    LAYERS,
    PAGE_BYTES,
    assert_same_output,
    cache_for,
    eventually,
    filled,
    generate,
    model_of,
    prompt,
)
from transformers import DynamicCache

from vmm import KVCache, KVTensor
from vmm.records import part_of_one
from vmm.units import rounded_up

PART = part_of_one("token-major" if ON_CUDA else "head-major", HEADS, DIM)
RECORD_BYTES = 4 * PART.record


def extent_bytes(tokens):
    return rounded_up(tokens * RECORD_BYTES, PAGE_BYTES)


def all_idle(pool):
    eventually(lambda: pool.stats().reservations_leased == 0)


DESCENDING = [700, 500, 321, 200, 64, 47]
RANDOM = random.Random(5).sample(range(47, 800), 12)


@pytest.mark.parametrize("lengths", [DESCENDING, RANDOM], ids=["descending", "random"])
def test_a_longer_idle_extent_serves_a_shorter_cache(pool, lengths):
    model, ids = model_of(), prompt(20)
    expected = generate(model, DynamicCache(config=model.config), ids)
    idle, adopted = [], 0
    for tokens in lengths:
        cache = cache_for(model, pool, max_tokens=tokens)
        assert_same_output(generate(model, cache, ids), expected)
        fitting = sorted(size for size in idle if size >= extent_bytes(tokens))
        adopted += bool(fitting)
        size = fitting[0] if fitting else extent_bytes(tokens)
        for layer in cache.layers:
            assert [place.lease.extent_bytes for place in layer._places] == [size, size]
            assert layer.keys.transpose(1, 2).stride() == PART.strides(size // 4, DIM)
        idle += [] if fitting else [size]
        del cache, layer
        all_idle(pool)
        assert pool.stats().reservations_made == 2 * LAYERS * len(idle)
        assert pool.stats().reservations_adopted == 2 * LAYERS * adopted
    assert adopted > len(lengths) // 3
    pool.check()


def test_only_extents_up_to_the_longest_that_was_asked_for_are_adopted(pool):
    def reserved(pages, longest_pages=0):
        return pool._core.reserve(
            page_bytes=PAGE_BYTES,
            extent_bytes=pages * PAGE_BYTES,
            extents=1,
            longest_bytes=longest_pages * PAGE_BYTES,
        )

    lease = reserved(8)
    lease.map([(0, 1)])
    del lease
    assert reserved(5).extent_bytes == 5 * PAGE_BYTES
    assert reserved(5, 7).extent_bytes == 5 * PAGE_BYTES
    assert reserved(9, 20).extent_bytes == 9 * PAGE_BYTES
    assert pool.stats().reservations_adopted == 0
    assert reserved(5, 8).extent_bytes == 8 * PAGE_BYTES
    assert pool.stats().reservations_adopted == 1


def test_a_kv_cache_and_a_tensor_never_get_longer_extents(pool):
    """Their views and slots are counted by the extents they asked for."""
    filled(cache_for(model_of(), pool, max_tokens=700), 70)

    def cache(tokens):
        return KVCache(
            layers=1, kv_heads=HEADS, head_dim=DIM, max_sequences=1, max_tokens=tokens,
            dtype=torch.float32, pool=pool, page_bytes=PAGE_BYTES,
        )  # fmt: skip

    long = cache(700)
    with long.open() as sequence:
        long.step(int32(sequence.slot), int32(70))
    long.close()
    all_idle(pool)
    before = pool.stats()
    short, tensor = cache(300), KVTensor(HEADS, 300, DIM, pool=pool, page_bytes=PAGE_BYTES)
    tensor[:, :300] = 0
    short.close()
    after = pool.stats()
    assert after.reservations_adopted == before.reservations_adopted
    assert after.reservations_made > before.reservations_made + 1


@pytest.mark.skipif(not ON_CUDA, reason="only GPU kernels count strides with 32 bits")
def test_no_extent_is_adopted_whose_stride_does_not_fit_32_bits(pool):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        filled(cache_for(model_of(), pool, max_tokens=2**31 // (HEADS * DIM)), 5)
    all_idle(pool)
    cache = filled(cache_for(model_of(), pool, max_tokens=100), 5)
    assert cache.layers[0].keys.stride(0) < 2**31
    assert pool.stats().reservations_adopted == 0


@pytest.mark.skipif(not ON_CUDA, reason="only GPU kernels count strides with 32 bits")
def test_one_warning_for_a_cache(pool):
    model = model_of()
    assert model.config.num_hidden_layers > 1
    with warnings.catch_warnings(record=True) as caught, torch.no_grad():
        warnings.simplefilter("always")
        caches = [cache_for(model, pool, max_tokens=2**31 // (HEADS * DIM)) for _ in range(2)]
        for cache in caches:
            model(torch.arange(5)[None], past_key_values=cache)
            filled(cache, 5)
    assert ["max_tokens" in str(warning.message) for warning in caught] == [True, True]
    assert [warning.filename for warning in caught] == [__file__] * 2
