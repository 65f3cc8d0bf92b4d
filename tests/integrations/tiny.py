"""Tiny models with random weights, and what the tests do with them: everything against DynamicCache."""

import functools
import time

import torch
from cuda_standin import ON_CUDA
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    DynamicCache,
    Gemma2Config,
    Gemma2ForCausalLM,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from vmm import Pool, _core
from vmm.integrations.transformers import VmmCache
from vmm.integrations.transformers.layer import VmmLayer

PAGE_BYTES = 4096  # 64 tokens of float32, 128 of bfloat16: pages are crossed soon
LAYERS, HEADS, DIM, VOCABULARY = 3, 2, 16, 96
PAGES = LAYERS * 2 * HEADS  # that one row needs for up to 64 tokens
EXTENTS = 1 if ON_CUDA else HEADS  # of a row's K: token-major, head-major

WINDOW = 8
_SLIDING = "sliding_attention"
_FAMILIES = {
    "llama": (LlamaForCausalLM, LlamaConfig, {}),
    "mistral": (MistralForCausalLM, MistralConfig, {"sliding_window": None}),
    "mistral-sliding": (MistralForCausalLM, MistralConfig, {"sliding_window": WINDOW}),
    "qwen2": (Qwen2ForCausalLM, Qwen2Config, {}),
    "qwen2-mixed": (
        Qwen2ForCausalLM,
        Qwen2Config,
        {
            "use_sliding_window": True,
            "sliding_window": WINDOW,
            "layer_types": ["full_attention", _SLIDING, "full_attention"],
        },
    ),
    "gemma2": (
        Gemma2ForCausalLM,
        Gemma2Config,
        {
            "sliding_window": WINDOW,
            "layer_types": [_SLIDING, "full_attention", _SLIDING],
            "attn_implementation": "eager",  # it has no other
        },
    ),
    "gemma3": (
        Gemma3ForCausalLM,
        Gemma3TextConfig,
        {"sliding_window": WINDOW, "layer_types": [_SLIDING, _SLIDING, "full_attention"]},
    ),
    "qwen3": (Qwen3ForCausalLM, Qwen3Config, {}),
}
FAMILIES = tuple(_FAMILIES)


@functools.cache
def model_of(family="llama", dtype=torch.float32, attention="sdpa", window=WINDOW):
    make_model, make_config, options = _FAMILIES[family]
    options = {"attn_implementation": attention} | options
    if options.get("sliding_window"):
        options["sliding_window"] = window
    config = make_config(
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=LAYERS,
        num_attention_heads=2 * HEADS,
        num_key_value_heads=HEADS,
        head_dim=DIM,
        vocab_size=VOCABULARY,
        max_position_embeddings=4096,
        # Large, so that the tokens depend on the past; with the usual 0.02 the model soon repeats itself.
        initializer_range=0.3,
        bos_token_id=None,
        eos_token_id=None,
        **options,
    )
    torch.manual_seed(0)
    return make_model(config).to(dtype).eval()


@functools.cache
def bart():
    """An encoder-decoder."""
    config = BartConfig(
        d_model=64,
        encoder_layers=2,
        decoder_layers=2,
        encoder_attention_heads=4,
        decoder_attention_heads=4,
        encoder_ffn_dim=96,
        decoder_ffn_dim=96,
        vocab_size=VOCABULARY,
        max_position_embeddings=256,
        init_std=0.3,
        bos_token_id=None,
        eos_token_id=None,
        forced_eos_token_id=None,
        decoder_start_token_id=1,
    )
    torch.manual_seed(0)
    return BartForConditionalGeneration(config).eval()


def small_pool(pages):
    """Every page and driver call is the caller's: there is no pager, and the driver fails on demand."""
    pool = Pool(pages * PAGE_BYTES)
    pool.close()
    pool._core = _core.Pool(pages * PAGE_BYTES, lookahead_pages=0, pager_thread=False, faults=True)
    return pool


def cache_for(model, pool, **options):
    return VmmCache(model.config, pool=pool, page_bytes=PAGE_BYTES, **options)


def prompt(tokens=12, batch=1, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(1, VOCABULARY, (batch, tokens), generator=generator)


def left_padding(ids):
    """A mask under which row i starts 3·i tokens later."""
    mask = torch.ones_like(ids)
    for row in range(len(ids)):
        mask[row, : 3 * row] = 0
    return mask


def generate(model, cache, ids, mask=None, **options):
    options = {"max_new_tokens": 24, "do_sample": False} | options
    return model.generate(
        ids,
        attention_mask=torch.ones_like(ids) if mask is None else mask,
        past_key_values=cache,
        pad_token_id=0,
        return_dict_in_generate=True,
        output_scores=True,
        **options,
    )


def assert_same_output(output, expected):
    assert torch.equal(output.sequences, expected.sequences)
    assert len(output.scores) == len(expected.scores)
    for step, (scores, wanted) in enumerate(zip(output.scores, expected.scores, strict=True)):
        assert torch.equal(scores, wanted), f"scores of step {step}"


def assert_same_states(cache, expected):
    """The same keys and values, whether in vmm's memory or not."""
    assert len(cache) == len(expected)
    for layer, wanted in zip(cache.layers, expected.layers, strict=True):
        assert layer.get_seq_length() == wanted.get_seq_length()
        if wanted.get_seq_length():
            assert torch.equal(layer.keys, wanted.keys)
            assert torch.equal(layer.values, wanted.values)


def compare(model, pool, drive, **options):
    """drive(cache) with DynamicCache and with VmmCache: the outputs and the caches left must be the same."""
    dynamic, ours = DynamicCache(config=model.config), cache_for(model, pool, **options)
    expected, output = drive(dynamic), drive(ours)
    assert_same_output(output, expected)
    assert_same_states(ours, dynamic)
    assert_in_place(ours)
    return ours


def assert_in_place(cache):
    """No layer fell back to concatenation, which would agree with DynamicCache all too easily."""
    assert all(layer.growth is not None for layer in cache.layers if isinstance(layer, VmmLayer))


def states(tokens=5, batch=1, *, heads=HEADS, dim=DIM, dtype=torch.float32, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, heads, tokens, dim, generator=generator).to(dtype)


def filled(cache, tokens=5, batch=1, seed=3):
    """The cache with the same random states in each layer as any other cache filled with this seed."""
    for index in range(len(cache)):
        keys = states(tokens, batch, seed=seed + index)
        cache.update(keys, keys.flip(-1), index)
    return cache


def append_to(caches, tokens=1, batch=3, seed=50):
    """The same tokens to each."""
    for cache in caches:
        filled(cache, tokens, batch, seed)


def pages_for(tokens, ahead=0):
    """Of one row in float32."""
    return LAYERS * 2 * EXTENTS * (-(-tokens // (64 * EXTENTS // HEADS)) + ahead)


def snapshot(cache):
    """What the caller of a refused or failed call must find again."""
    return [(layer.get_seq_length(), copy_of(layer.keys), copy_of(layer.values)) for layer in cache.layers]


def assert_unchanged(cache, before):
    for (length, keys, values), (old_length, old_keys, old_values) in zip(
        snapshot(cache), before, strict=True
    ):
        assert length == old_length
        if length:
            assert torch.equal(keys, old_keys)
            assert torch.equal(values, old_values)


def copy_of(tensor):
    return None if tensor is None else tensor.detach().clone()


def eventually(condition, seconds=20):
    """Waits for what another thread does; the pager may hold a reservation a moment longer than we do."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.001)
