"""Sliding layers show what the stock layer shows, and give back what their window has left."""

import copy
import pickle

import pytest
import torch
from cuda_standin import ON_CUDA
from tiny import (
    EXTENTS,
    HEADS,
    LAYERS,
    PAGE_BYTES,
    append_to,
    assert_in_place,
    assert_same_output,
    assert_same_states,
    assert_unchanged,
    cache_for,
    compare,
    generate,
    left_padding,
    model_of,
    prompt,
    small_pool,
    snapshot,
    states,
)
from transformers import DynamicCache

from vmm import InvalidArgument, OutOfPages
from vmm.testing import settle

WINDOW = 100  # a page has 64 tokens of a head, or 32 of both
PAGE_TOKENS = 64 * EXTENTS // HEADS
SLIDING = ["mistral-sliding", "qwen2-mixed", "gemma2", "gemma3"]


def pair_of(pool, family="qwen2-mixed", tokens=0, batch=1):
    model = model_of(family, window=WINDOW)
    pair = DynamicCache(config=model.config), cache_for(model, pool)
    if tokens:
        append_to(pair, tokens, batch, seed=3)
    return pair


def assert_same_masks(pair):
    for index in range(LAYERS):
        for query in (1, 7, 150):
            assert pair[1].get_mask_sizes(query, index) == pair[0].get_mask_sizes(query, index)


def pages_of_window(tokens):
    """Of one row of a layer whose last forward began with so many tokens."""
    first = max(0, tokens + 1 - WINDOW)
    return 2 * EXTENTS * (tokens // PAGE_TOKENS + 1 - first // PAGE_TOKENS)


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("family", SLIDING)
def test_longer_than_the_window(pool, family, batch):
    """The prompt is longer, and decoding crosses many pages."""
    model, ids = model_of(family, window=WINDOW), prompt(170, batch)
    compare(model, pool, lambda cache: generate(model, cache, ids, left_padding(ids), max_new_tokens=200))


@pytest.mark.parametrize("family", SLIDING)
def test_grown_from_below_the_window(pool, family):
    model, ids = model_of(family, torch.bfloat16, window=WINDOW), prompt(20, 2)
    compare(model, pool, lambda cache: generate(model, cache, ids, left_padding(ids), max_new_tokens=300))


@pytest.mark.parametrize("family", SLIDING)
def test_prefill_in_chunks(pool, family):
    model, ids = model_of(family, window=WINDOW), prompt(331)

    def drive(cache):
        with torch.no_grad():
            for start, stop in [(0, 1), (1, 64), (64, 99), (99, 100), (100, 101), (101, 330)]:
                model(ids[:, start:stop], past_key_values=cache)
        return generate(model, cache, ids)

    compare(model, pool, drive)
    compare(model, pool, lambda cache: generate(model, cache, ids, prefill_chunk_size=70))


@pytest.mark.parametrize("family", SLIDING)
def test_beams(pool, family):
    model, ids = model_of(family, window=WINDOW), prompt(150, 2)
    mask = left_padding(ids)
    compare(model, pool, lambda cache: generate(model, cache, ids, mask, num_beams=3, max_new_tokens=150))


@pytest.mark.parametrize("family", SLIDING)
def test_prompt_lookup(pool, family):
    """It records the past, and crops."""
    model, ids = model_of(family, window=WINDOW), prompt(30).repeat(1, 5)
    compare(
        model, pool, lambda cache: generate(model, cache, ids, prompt_lookup_num_tokens=4, max_new_tokens=150)
    )


def test_assisted_decoding(pool):
    model, assistant = (model_of("gemma3", dtype, window=WINDOW) for dtype in (torch.float32, torch.bfloat16))
    ids = prompt(90)
    compare(
        model, pool, lambda cache: generate(model, cache, ids, assistant_model=assistant, max_new_tokens=150)
    )


@pytest.mark.parametrize("steps", [[30, 1, 1], [99, 1, 1], [100, 50, 1], [250, 1, 64, 1, 200, 1]], ids=str)
def test_update_shows_and_returns_what_the_stock_layer_does(pool, steps):
    pair = pair_of(pool)
    for seed, tokens in enumerate(steps):
        keys = states(tokens, 2, seed=seed)
        for index in range(LAYERS):
            wanted, found = (cache.update(keys, -keys, index) for cache in pair)
            assert all(torch.equal(*both) for both in zip(found, wanted, strict=True))
        assert_same_states(*reversed(pair))
        assert_same_masks(pair)


def test_what_no_window_reaches_goes_back(pool):
    """Page by page, and to the system, not only to the pool's free pages."""
    _, cache = pair_of(pool, "mistral-sliding")
    append_to([cache], 40, batch=1)
    most = 0
    for seed in range(600):
        append_to([cache], 1, batch=1, seed=seed)
        pages = LAYERS * pages_of_window(cache.get_seq_length() - 1)
        assert pool.stats().kept_bytes <= (pages + LAYERS * 2 * EXTENTS) * PAGE_BYTES
        most = max(most, pool.stats().created_bytes)
    settle(pool)
    assert pool.stats().kept_bytes == LAYERS * pages_of_window(639) * PAGE_BYTES
    if not ON_CUDA:  # where a page more is created at times, to lie ready
        assert most <= (LAYERS * pages_of_window(639) + 2 * LAYERS * 2 * EXTENTS) * PAGE_BYTES
    assert cache.stats().live_bytes == LAYERS * 2 * HEADS * (WINDOW - 1) * 64


def test_no_token_waits_for_its_page(pool):
    """A forward that fills the last page has the next one mapped, and no more than that."""
    _, cache = pair_of(pool, "mistral-sliding")
    append_to([cache], 40, batch=1)
    before = pool.stats().stalls
    for seed in range(3 * PAGE_TOKENS):
        settle(pool)
        pages = LAYERS * pages_of_window(cache.get_seq_length() - 1)
        ahead = LAYERS * 2 * EXTENTS if cache.get_seq_length() % PAGE_TOKENS == 0 else 0
        assert ON_CUDA or pool.stats().mapped_bytes == (pages + ahead) * PAGE_BYTES
        append_to([cache], 1, batch=1, seed=seed)
    assert pool.stats().stalls == before


def test_what_a_forward_may_read_stays_until_the_next(pool):
    """Also of a prompt that is longer than the window, whose tokens all attend to one before them."""
    _, cache = pair_of(pool, "mistral-sliding")
    append_to([cache], 10, batch=1)
    keys = states(400)
    returned, _ = cache.update(keys, keys, 0)
    assert returned.shape[2] == 410
    pool.trim()
    assert torch.equal(returned[:, :, 10:], keys)
    kept = pool.stats().kept_bytes
    append_to([cache], 1, batch=1)
    assert pool.stats().kept_bytes < kept


def test_crop_where_stock_refuses(pool):
    pair = pair_of(pool, tokens=150)
    before = snapshot(pair[1])
    for tokens in (-1, 0, 3):
        for cache in pair:
            with pytest.raises((RuntimeError, ValueError)) as caught:
                cache.crop(tokens)
            if cache is pair[0]:
                wanted = caught.value
            else:
                assert str(caught.value) == str(wanted)
        pair = pair_of(pool, tokens=150)  # stock has cropped its first layer
    assert_unchanged(pair[1], before)


@pytest.mark.parametrize("past", [60, 99, 100, 150])
def test_crop_where_the_past_is_recorded(pool, past):
    pair = pair_of(pool, tokens=past, batch=2)
    for cache in pair:
        cache.activate_past_recording()
    for seed, (tokens, remove) in enumerate([(5, -2), (1, 0), (70, -69), (64, -1), (3, -3), (130, -130)]):
        append_to(pair, tokens, batch=2, seed=seed)
        for cache in pair:
            cache.crop(remove)
        assert_same_states(*reversed(pair))
        assert_same_masks(pair)
    assert_in_place(pair[1])


def test_forwards_without_a_crop_between_them_are_recorded(pool):
    pair = pair_of(pool, tokens=150)
    for cache in pair:
        cache.activate_past_recording()
    for tokens in (1, 70, 1, 64):
        keys = states(tokens, seed=tokens)
        for index in range(LAYERS):
            wanted, found = (cache.update(keys, -keys, index) for cache in pair)
            assert all(torch.equal(*both) for both in zip(found, wanted, strict=True))
    assert_same_states(*reversed(pair))
    for cache in pair:
        cache.crop(-100)
    append_to(pair, 90, batch=1)
    assert_same_states(*reversed(pair))


def test_crop_beyond_what_was_recorded_is_refused(pool):
    cache = pair_of(pool, tokens=300)[1]
    cache.activate_past_recording()
    append_to([cache], 2, batch=1)
    before = snapshot(cache)
    for tokens in (-3, -302, -400):
        with pytest.raises(InvalidArgument, match="tokens_to_remove"):
            cache.crop(tokens)
        assert_unchanged(cache, before)
    cache.crop(-2)
    assert cache.get_seq_length() == 300


@pytest.mark.parametrize("round_trip", [copy.deepcopy, lambda cache: pickle.loads(pickle.dumps(cache))])
@pytest.mark.parametrize("tokens", [20, 150, 400])
@pytest.mark.parametrize("recording", [False, True])
def test_copies(pool, round_trip, tokens, recording):
    pair = pair_of(pool, tokens=tokens, batch=2)
    if recording:
        for cache in pair:
            cache.activate_past_recording()
        append_to(pair, 70, batch=2)
    twins = copy.deepcopy(pair[0]), round_trip(pair[1])
    assert_same_states(*reversed(twins))
    append_to(pair, 70, batch=2, seed=1)
    append_to(twins, 90, batch=2, seed=2)
    if recording:
        for cache in (*pair, *twins):
            cache.crop(-60)
    for both in (pair, twins):
        append_to(both, 200, batch=2, seed=4)
        assert_same_states(*reversed(both))
        assert_same_masks(both)
    assert_in_place(twins[1])
    assert [layer.is_sliding for layer in twins[1].layers] == pair[0].is_sliding


def test_rows_that_are_chosen(pool):
    pair = pair_of(pool, tokens=150, batch=3)
    for step in range(4):
        for cache in pair:
            cache.reorder_cache(torch.tensor([2, 0, 0]))
        append_to(pair, 70, batch=3, seed=step)
        assert_same_states(*reversed(pair))
    for cache in pair:
        cache.batch_select_indices(torch.tensor([1, 2]))
        cache.batch_repeat_interleave(2)
    for step in range(4):
        append_to(pair, 50, batch=4, seed=step)
        assert_same_states(*reversed(pair))


def test_gradients(pool):
    pair = pair_of(pool, tokens=150)
    keys = states(5).requires_grad_()
    for cache in pair:
        for index in range(LAYERS):
            cache.update(keys * 2, keys * 3, index)
        append_to([cache], 70, batch=1)
    assert_same_states(*reversed(pair))
    assert_same_masks(pair)


def test_reset(pool):
    pair = pair_of(pool, tokens=150)
    for cache in pair:
        cache.reset()
    assert [layer.get_seq_length() for layer in pair[1].layers] == [0] * LAYERS
    append_to(pair, 230, batch=2)
    append_to(pair, 3, batch=2)
    assert_same_states(*reversed(pair))


def test_a_window_of_one_stays_stock(pool):
    """The stock layer, which is to hold none of the past then, holds all of it."""
    model = model_of("mistral-sliding", window=1)
    assert [type(layer).__name__ for layer in cache_for(model, pool).layers] == [
        "DynamicSlidingWindowLayer"
    ] * LAYERS


@pytest.mark.host_only  # as small_pool is
def test_no_page_for_the_next_token_leaves_the_window_readable():
    with small_pool(LAYERS * 2 * HEADS * 3) as pool:
        pair = pair_of(pool, "mistral-sliding", tokens=180)
        append_to(pair, 12, batch=1)
        before = snapshot(pair[1])
        with pytest.raises(OutOfPages):
            append_to([pair[1]], 200, batch=1)
        assert_unchanged(pair[1], before)
        append_to(pair, 1, batch=1)
        assert_same_states(*reversed(pair))
        pool.check()


def test_two_prompts_in_turn(pool):
    """A conversation that goes on, as an agent's does."""
    model = model_of("gemma3", window=WINDOW)

    def drive(cache):
        ids = generate(model, cache, prompt(120)).sequences
        ids = generate(model, cache, torch.cat([ids, prompt(150, seed=7)], dim=1)).sequences
        return generate(model, cache, torch.cat([ids, prompt(10, seed=8)], dim=1))

    compare(model, pool, drive)


def test_samples(pool):
    model, ids = model_of("gemma2", window=WINDOW), prompt(200)

    def drive(cache):
        torch.manual_seed(5)
        return generate(model, cache, ids, do_sample=True, temperature=1.5, num_return_sequences=3)

    compare(model, pool, drive)


def test_prefix_reuse(pool):
    model, prefix = model_of("qwen2-mixed", window=WINDOW), prompt(170)
    ours, dynamic = cache_for(model, pool), DynamicCache(config=model.config)
    with torch.no_grad():
        for cache in (ours, dynamic):
            model(prefix, past_key_values=cache)
    before = snapshot(ours)
    for seed in (11, 12):
        ids = torch.cat([prefix, prompt(6, seed=seed)], dim=1)
        output = generate(model, copy.deepcopy(ours), ids, max_new_tokens=100)
        assert_same_output(output, generate(model, copy.deepcopy(dynamic), ids, max_new_tokens=100))
    assert_unchanged(ours, before)
