"""VmmCache on a model on the GPU: the tokens of DynamicCache."""

import copy
import functools

import torch
from gpu_device import DEVICE, on_device, page_bytes, pool_of, raised, synchronize

import vmm


@functools.cache
def model(dtype: torch.dtype = torch.float32):
    """A small Llama with grouped queries."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        num_hidden_layers=3,
        hidden_size=256,
        num_attention_heads=8,
        num_key_value_heads=2,
        intermediate_size=512,
        vocab_size=512,
        max_position_embeddings=4096,
    )
    torch.manual_seed(0)
    return LlamaForCausalLM(config).eval().to(DEVICE, dtype)


def caches(**options):
    from transformers import DynamicCache

    from vmm.integrations.transformers import VmmCache

    config = model().config
    return DynamicCache(config=config), VmmCache(config, **options)


def roomy(**options):
    """A pool that is not what the test is about: 64 MiB, or with large pages many of them."""
    return pool_of(max(256, 2**26 // page_bytes()), **options)


def prompt(rows: int, tokens: int = 100) -> dict[str, torch.Tensor]:
    """Padded at the left, each row more than the one before."""
    ids = torch.randint(2, 512, (rows, tokens), generator=torch.Generator().manual_seed(1)).to(DEVICE)
    mask = torch.ones_like(ids)
    for row in range(rows):
        mask[row, : 17 * row] = 0
    return {"input_ids": ids, "attention_mask": mask}


def generated(cache, rows: int, **options) -> torch.Tensor:
    chosen = {"max_new_tokens": 80, "do_sample": False, "pad_token_id": 0, **options}
    return model().generate(**prompt(rows), past_key_values=cache, **chosen)


@on_device
def test_the_tokens_are_those_of_dynamic_cache():
    with roomy() as pool:
        for rows in (1, 3):
            stock, ours = caches(max_tokens=2000, pool=pool)
            assert torch.equal(generated(ours, rows), generated(stock, rows))
            assert ours.get_seq_length() == stock.get_seq_length()
            assert ours.layers[0].keys.device == torch.device(DEVICE)
            assert torch.allclose(ours.layers[2].values, stock.layers[2].values, rtol=1e-3, atol=1e-4)


@on_device
def test_the_pool_is_that_of_the_first_states_device():
    vmm.configure(budget="256MiB", device=DEVICE)
    stock, ours = caches(max_tokens=2000)
    assert torch.equal(generated(ours, 1), generated(stock, 1))
    assert ours.pool is vmm.default_pool(DEVICE)


@on_device
def test_beams_and_samples():
    with roomy() as pool:
        for options in ({"num_beams": 3}, {"num_beams": 2, "num_return_sequences": 2}):
            stock, ours = caches(max_tokens=2000, pool=pool)
            assert torch.equal(generated(ours, 2, **options), generated(stock, 2, **options))


@on_device
def test_crop_and_go_on():
    with roomy() as pool, torch.no_grad():
        stock, ours = caches(max_tokens=2000, pool=pool)
        ids = prompt(1)["input_ids"]
        logits = []
        for cache in (stock, ours):
            model()(ids, past_key_values=cache)
            cache.crop(-40)
            logits.append(model()(ids[:, 60:], past_key_values=cache).logits)
        assert torch.allclose(*logits, rtol=1e-3, atol=1e-3)
        assert torch.equal(*(each.argmax(-1) for each in logits))
        twin = copy.deepcopy(ours)
        assert torch.equal(twin.layers[1].keys, ours.layers[1].keys)
        assert twin.layers[1].keys.device == ours.layers[1].keys.device


@on_device
def test_growing_copies_nothing():
    with roomy() as pool, torch.no_grad():
        _, ours = caches(max_tokens=2000, pool=pool)
        ids = prompt(1)["input_ids"]
        model()(ids, past_key_values=ours)
        address = ours.layers[0].keys.data_ptr()
        for _ in range(20):
            model()(ids[:, :7], past_key_values=ours)
        assert ours.layers[0].keys.data_ptr() == address
        assert ours.layers[0].keys.shape[2] == 100 + 20 * 7


@on_device
def test_a_prompt_that_does_not_fit():
    ids = prompt(1)["input_ids"]
    with roomy(lookahead_pages=0) as pool, torch.no_grad():
        _, ours = caches(max_tokens=100_000, pool=pool)
        model()(ids, past_key_values=ours)
        needed = pool.stats().kept_bytes // pool.default_page_bytes
    with pool_of(needed, lookahead_pages=0) as pool, torch.no_grad():
        _, ours = caches(max_tokens=100_000, pool=pool)
        expected = model()(ids, past_key_values=ours).logits
        long = torch.ones(1, 20_000, dtype=torch.int64, device=DEVICE)
        raised(vmm.OutOfPages, lambda: model()(long, past_key_values=ours))
        assert ours.get_seq_length() == 100
        ours.crop(-1)
        again = model()(ids[:, 99:], past_key_values=ours).logits
        assert torch.allclose(again[:, -1], expected[:, -1], rtol=1e-3, atol=1e-3)


@on_device
def test_the_next_cache_starts_with_the_memory_of_the_last():
    with roomy() as pool:
        _, first = caches(max_tokens=2000, pool=pool)
        generated(first, 1)
        synchronize()
        created = pool.stats().pages_created
        del first
        stock, second = caches(max_tokens=2000, pool=pool)
        assert torch.equal(generated(second, 1), generated(stock, 1))
        assert pool.stats().pages_created == created
        assert pool.stats().reservations_adopted > 0


@on_device
def test_half_precision_is_near():
    """Teacher-forced: kernels may sum in another order where strides differ."""
    with roomy() as pool, torch.no_grad():
        half = model(torch.bfloat16)
        stock, ours = caches(max_tokens=2000, pool=pool)
        ids = prompt(1)["input_ids"]
        for part in ids.split([60, 1, 1, 20, 18], dim=1):
            theirs, mine = (half(part, past_key_values=cache).logits.float() for cache in (stock, ours))
            error = (mine - theirs).norm() / theirs.norm()
            assert error < 0.02
        assert ours.layers[0].keys.dtype == torch.bfloat16
