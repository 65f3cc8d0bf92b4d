"""Kernels compute (row x stride), and keep strides, in 32 bits: which layouts stay below that."""

import warnings
from types import SimpleNamespace

import cuda_standin
import pytest
import torch

from vmm import KVCache, Pool, _core
from vmm.kv_cache.layout import chosen_records
from vmm.records import LayerShape, slot_elements
from vmm.simulate import PRESETS, Settings, find_gpu

GPU = SimpleNamespace(_core=SimpleNamespace(gpu=True, max_mappings=0))
LLAMA_8B, LLAMA_70B = [LayerShape(8, 128)] * 32, [LayerShape(8, 128)] * 80
KERNELS = "memory-efficient.*cuDNN"


def elements_of(tokens, itemsize=2):
    return lambda records: slot_elements(records, tokens, itemsize, 2**21)


def layers_of(shapes, tokens, **how):
    """In each extent, as the cache on a GPU would choose; and whether it warns."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        records = chosen_records(
            shapes, how.get("layout"), how.get("layers"), GPU, 4, slot_elements=elements_of(tokens)
        )
    size = 2 * shapes[0].kv_heads * shapes[0].head_dim
    return [part.record // size for part in records.parts], [str(each.message) for each in caught]


@pytest.mark.parametrize(
    ("shapes", "tokens", "layers"),
    [
        (LLAMA_8B, 8192, [32]),
        (LLAMA_8B, 32_752, [32]),  # 2^31 less one page of 16 tokens
        (LLAMA_8B, 32_768, [16, 16]),  # where row x stride is 2^31
        (LLAMA_8B, 131_072, [7, 7, 7, 7, 4]),
        (LLAMA_70B, 13_000, [80]),
        (LLAMA_70B, 13_108, [40, 40]),
        (LLAMA_8B, 2**20 - 1024, [1] * 32),
    ],
)
def test_a_slot_has_fewer_elements_than_32_bits_count(shapes, tokens, layers):
    assert layers_of(shapes, tokens) == (layers, [])


def test_the_choice_has_the_fewest_extents():
    for tokens in range(1000, 500_000, 7919):
        (chosen, said) = layers_of(LLAMA_8B, tokens)
        assert not said
        assert tokens * max(chosen) * 2048 < 2**31
        if len(chosen) > 1:  # one extent less would have been too few
            more = -(-32 // (len(chosen) - 1))
            assert layers_of(LLAMA_8B, tokens, layers=more)[1]


def test_what_is_asked_for_is_given_with_one_warning():
    for how in ({"layers": 32}, {"layers": 32, "layout": "token-major"}):
        layers, said = layers_of(LLAMA_8B, 40_000, **how)
        assert layers == [32]
        assert len(said) == 1
        assert "layers_per_extent" in said[0]
        for kernel in ("memory-efficient", "cuDNN", "FlashAttention"):
            assert kernel in said[0]
    assert layers_of(LLAMA_8B, 30_000, layers=32) == ([32], [])


@pytest.mark.parametrize("how", [{}, {"layers": 1}, {"layout": "head-major"}], ids=str)
def test_more_tokens_than_any_layout_can_hold(how):
    """Slots of 2^31 elements and more: their strides may be equal modulo 2^32."""
    _, said = layers_of(LLAMA_8B, 2**22, **how)
    assert len(said) == 1
    assert "max_tokens" in said[0]
    assert "layers_per_extent" not in said[0]


@pytest.fixture
def gpu():
    cuda_standin.configured(granularity=2**21)
    pool = Pool._over(_core.Pool(2**26, cuda_device=0, cuda_host_accessible=True))
    yield pool
    pool.close()
    cuda_standin.configured(granularity=4096)


def test_a_cache_has_such_strides(gpu):
    shape = {"layers": 32, "kv_heads": 8, "head_dim": 128, "max_tokens": 131_072, "max_sequences": 2}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with KVCache(**shape, dtype=torch.bfloat16, pool=gpu) as cache:
            for layer in range(32):
                for view in cache.kv(layer):
                    assert view.stride(0) < 2**31
                    assert view.stride(1) == (7 if layer < 28 else 4) * 2048
    with (
        pytest.warns(RuntimeWarning, match=KERNELS) as caught,
        KVCache(**shape, dtype=torch.bfloat16, pool=gpu, layers_per_extent=32) as cache,
    ):
        assert cache.kv(0)[0].stride() == (2**33, 65_536, 128, 1)
    assert len(caught) == 1
    assert caught[0].filename == __file__


@pytest.mark.parametrize("model", PRESETS.values(), ids=lambda model: model.name)
def test_what_is_simulated_by_default_is_what_a_cache_on_a_gpu_has(gpu, model):
    shape = {"layers": model.layers, "kv_heads": model.kv_heads, "head_dim": model.head_dim}
    chosen = set()
    for tokens in (4096, 40_000, 131_072):
        settings = Settings(model, find_gpu("h200"), 2**38, tokens, find_gpu("h200").call_times)
        with KVCache(**shape, max_tokens=tokens, max_sequences=1, pool=gpu) as cache:
            records = [part.record * cache.dtype.itemsize for part in cache._records.parts]
        assert settings.records_bytes == records
        assert sum(settings.layers) == model.layers
        chosen.add(len(records))
    assert len(chosen) > 1


@pytest.mark.host_only
def test_the_cpu_s_kernels_count_in_64_bits(pool):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with KVCache(2, 8, 128, max_tokens=2**22, max_sequences=1, pool=pool, layers_per_extent=2) as cache:
            assert cache.kv(0)[0].stride(0) >= 2**33
