"""Sequences that begin with tokens of others: what a user of KVCache sees. The courses of
test_kv_cache_model.py have the rest."""

import array

import numpy as np
import pytest
import torch
from cuda_standin import ON_CUDA
from own_pool import PAGE

from vmm import Closed, InvalidArgument, KVCache, Pool

PROMPT = list(range(100, 200))


@pytest.fixture
def cache():
    with (
        Pool("8MiB") as pool,
        KVCache(2, 2, 16, torch.float32, max_tokens=256, max_sequences=4, pool=pool, page_bytes=PAGE) as made,
    ):
        yield made


def serve(cache, tokens, salt=None):
    """A sequence that has computed all of these tokens, and said so. Its values are those of the tokens."""
    sequence = cache.open(tokens=tokens, salt=salt)
    start = sequence.cached_tokens
    cache.step({sequence: len(tokens)})
    if not ON_CUDA:
        for layer in range(2):
            for which, states in enumerate(sequence.kv(layer)):
                new = torch.tensor(tokens[start:], dtype=torch.float32) + 1000 * layer + 10_000 * which
                states[start:] = new[:, None, None]
    sequence.commit(tokens[start:])
    return sequence


def holds(sequence, tokens):
    return ON_CUDA or all(
        torch.equal(states[:, 0, 0], torch.tensor(tokens) + 1000.0 * layer + 10_000 * which)
        for layer in range(2)
        for which, states in enumerate(sequence.kv(layer))
    )


def test_a_sequence_begins_with_what_a_running_or_a_closed_one_has_computed(cache):
    first = serve(cache, PROMPT)
    assert first.cached_tokens == 0
    second = cache.open(tokens=[*PROMPT, 1, 2, 3])
    assert (second.cached_tokens, second.length) == (96, 96)
    assert holds(second, PROMPT[:96])
    first.close()
    second.close()
    cache.end()
    assert cache.stats().cached_sequences == 2
    third = cache.open(tokens=PROMPT)
    assert third.cached_tokens == 96
    assert holds(third, PROMPT[:96])
    stats = cache.stats()
    assert stats.adopted == 1
    assert stats.aliased + stats.copied == 1
    assert (stats.prompt_tokens, stats.cached_tokens) == (303, 192)


def test_one_token_at_least_is_left_to_compute(cache):
    serve(cache, PROMPT[:96]).close()
    assert cache.open(tokens=PROMPT[:96]).cached_tokens == 80


def test_only_equal_tokens_from_the_start_and_in_whole_blocks_are_found(cache):
    serve(cache, PROMPT)
    others = [[99, *PROMPT[1:]], [*PROMPT[:15], 99, *PROMPT[16:]], PROMPT[:15], PROMPT[1:], []]
    for tokens in others:
        with cache.open(tokens=tokens) as sequence:
            assert sequence.cached_tokens == 0
    with cache.open(tokens=[*PROMPT[:47], 99, *PROMPT[48:]]) as sequence:
        assert sequence.cached_tokens == 32


def test_sequences_with_another_salt_find_nothing(cache):
    serve(cache, PROMPT, salt="a tenant's secret")
    for salt, found in ((None, 0), (b"another", 0), (b"a tenant's secret", 96)):
        with cache.open(tokens=PROMPT, salt=salt) as sequence:
            assert sequence.cached_tokens == found


@pytest.mark.parametrize(
    "kind",
    [
        torch.tensor,
        lambda ids: np.array(ids, dtype=np.int32),
        lambda ids: array.array("i", ids),
        tuple,
        lambda ids: torch.tensor(ids, dtype=torch.int32)[:],
    ],
)
def test_tokens_may_be_any_whole_numbers(cache, kind):
    serve(cache, PROMPT)
    assert cache.open(tokens=kind(PROMPT)).cached_tokens == 96


def test_what_was_cut_off_is_not_found(cache):
    sequence = serve(cache, PROMPT)
    sequence.truncate(40)
    assert cache.open(tokens=PROMPT).cached_tokens == 32
    cache.step({sequence: 100})
    sequence.commit([7] * 60)
    assert cache.open(tokens=[*PROMPT[:40], *[7] * 60]).cached_tokens == 96


def test_a_fork_s_tokens_are_found(cache):
    (fork,) = serve(cache, PROMPT).fork(1)
    cache.step({fork: 130})
    fork.commit(range(30))
    assert cache.open(tokens=[*PROMPT, *range(30)]).cached_tokens == 128


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"tokens": "text"}, "tokens is str"),
        ({"tokens": [1.5]}, "tokens is (1,) of torch.float32"),
        ({"tokens": [[1, 2]]}, "one dimension"),
        ({"tokens": [True]}, "torch.bool"),
        ({"tokens": [2**31]}, "expected int32"),
        ({"tokens": 7}, "one dimension"),
        ({"tokens": range(257)}, "tokens has 257 ids; max_tokens is 256"),
        ({"tokens": PROMPT, "prompt_tokens": 100}, "prompt_tokens: expected none beside tokens"),
        ({"tokens": PROMPT, "announce": 101}, "announce is 101"),
        ({"tokens": PROMPT, "salt": 7}, "salt is int; expected bytes, text, or None"),
    ],
)
def test_bad_prompts_are_refused_and_nothing_is_opened(cache, arguments, message):
    with pytest.raises(InvalidArgument) as refused:
        cache.open(**arguments)
    assert message in str(refused.value)
    assert cache.stats().sequences == 0


def test_bad_commits_are_refused_and_change_nothing(cache):
    sequence = cache.open(tokens=PROMPT)
    cache.step({sequence: 50})
    with pytest.raises(
        InvalidArgument, match="tokens has 51; the sequence has 50, of which 0 were committed"
    ):
        sequence.commit(PROMPT[:51])
    sequence.commit(PROMPT[:40])
    with pytest.raises(InvalidArgument, match="of which 40 were committed before"):
        sequence.commit(PROMPT[40:51])
    with pytest.raises(InvalidArgument, match="tokens is str"):
        sequence.commit("text")
    sequence.commit(PROMPT[40:50])
    sequence.close()
    with pytest.raises(Closed):
        sequence.commit([1])
    assert cache.open(tokens=PROMPT).cached_tokens == 48


def test_more_sequences_than_slots_are_refused_and_closed_ones_make_way(cache):
    for start in range(0, 4000, 1000):
        serve(cache, [start + i for i in range(100)]).close()
        cache.end()
    assert cache.stats().cached_sequences == 4
    running = [cache.open(tokens=[5000 + i]) for i in range(4)]
    assert cache.stats().cached_sequences == 0
    with pytest.raises(InvalidArgument, match="max_sequences is 4"):
        cache.open(tokens=PROMPT)
    running[0].close()
    cache.open(tokens=PROMPT)
