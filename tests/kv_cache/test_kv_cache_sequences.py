"""Sequences in place of slots: a step of {sequence: length}, and what is refused of sequences."""

from types import MappingProxyType

import numpy as np
import pytest
import torch
from own_pool import PAGE, int32, one_pool

from vmm import Closed, InvalidArgument, KVCache

SHAPE = {"layers": 2, "kv_heads": 3, "head_dim": 5, "dtype": torch.float32}
SIZE = {"max_tokens": 100, "max_sequences": 3, "page_bytes": PAGE}

pool = pytest.fixture(one_pool, scope="module")


@pytest.fixture
def cache(pool):
    with KVCache(**SHAPE, **SIZE, pool=pool) as made:
        yield made


@pytest.fixture
def pair(cache):
    """Two sequences, of 10 and 20 tokens; whatever is refused leaves them so."""
    a, b = cache.open(), cache.open()
    cache.step({a: 10, b: 20})
    yield a, b
    assert (a.length, b.length) == (10, 20)
    assert cache.stats().sequences == 2


@pytest.mark.parametrize("kind", [dict, MappingProxyType])
def test_a_step_of_sequences(cache, kind):
    a, b, c = (cache.open() for _ in range(3))
    cache.step(kind({c: 30, a: 10}))
    assert [sequence.length for sequence in (a, b, c)] == [10, 0, 30]
    for sequence in (a, c):
        for part in sequence.kv(1):
            part[:] = 1.0 + sequence.slot
    cache.step(kind({a: 11, b: 5, c: 30}))
    assert [sequence.length for sequence in (a, b, c)] == [11, 5, 30]
    assert a.kv(1)[0][:10].eq(1.0 + a.slot).all()


def test_a_step_of_sequences_on_a_stream(cache):
    stream = cache.pool._core.create_stream()
    a = cache.open(stream=stream)
    cache.step({a: 10}, stream=stream)
    cache.end(stream)
    cache.pool._core.synchronize(stream)
    assert a.length == 10


def test_the_same_object_may_be_stepped_again_with_other_lengths(cache):
    lengths = {cache.open(): 1, cache.open(): 2}
    for _ in range(3):
        cache.step(lengths)
        lengths = {sequence: length + 1 for sequence, length in lengths.items()}
    assert [sequence.length for sequence in lengths] == [3, 4]


BAD_LENGTHS = [True, -1, 101, 2**31, 2**63, 10.0, None, "11", np.float32(11), torch.tensor(11.0), [11]]


@pytest.mark.parametrize("length", BAD_LENGTHS, ids=repr)
def test_a_length_that_is_none(cache, pair, length):
    a, b = pair
    with pytest.raises(InvalidArgument, match=r"^lengths\[1\] is .*; expected 0 to 100"):
        cache.step({a: 11, b: length})


def test_a_length_that_is_less_than_before(cache, pair):
    a, b = pair
    with pytest.raises(InvalidArgument, match=r"^lengths\[1\] is 19, less than before"):
        cache.step({a: 11, b: 19})


def test_no_sequences(cache, pair):
    with pytest.raises(InvalidArgument, match=r"^slots is empty; expected .*sequence.* end\(\)"):
        cache.step({})


@pytest.mark.parametrize("key", [0, "a", None, 1.5])
def test_a_key_that_is_no_sequence(cache, pair, key):
    with pytest.raises(InvalidArgument, match=r"^slots\[1\] is .*; expected a sequence of this cache"):
        cache.step({pair[0]: 11, key: 5})
    with pytest.raises(InvalidArgument, match=r"^sequences\[1\] is .*; expected a sequence of this cache"):
        cache.batch([pair[0], key])


def test_another_cache_s_sequence(cache, pair, pool):
    with KVCache(**SHAPE, **SIZE, pool=pool) as other, other.open() as foreign:
        with pytest.raises(InvalidArgument, match=r"^slots\[1\] is of another cache; expected"):
            cache.step({pair[0]: 11, foreign: 5})
        with pytest.raises(InvalidArgument, match=r"^sequences\[1\] is of another cache; expected"):
            cache.batch([pair[0], foreign])
        assert foreign.length == 0


def test_a_closed_sequence(cache, pair):
    closed = cache.open()
    closed.close()
    with pytest.raises(Closed, match=r"^slots\[1\]: this sequence is closed"):
        cache.step({pair[0]: 11, closed: 5})
    with pytest.raises(Closed, match=r"^sequences\[0\]: this sequence is closed"):
        cache.batch([closed])


@pytest.mark.parametrize("sequences", [1, None])
def test_a_batch_of_what_cannot_be_counted(cache, sequences):
    with pytest.raises(InvalidArgument, match=r"^sequences is .*; expected sequences of this cache"):
        cache.batch(sequences)


@pytest.mark.parametrize("lengths", [0, int32(11)], ids=["a stream in their place", "an array"])
def test_lengths_beside_a_mapping(cache, pair, lengths):
    with pytest.raises(InvalidArgument, match=r"^slots is dict; expected an int32 array, or .* alone"):
        cache.step({pair[0]: 11}, lengths)


def test_a_closed_cache(pool):
    cache = KVCache(**SHAPE, **SIZE, pool=pool)
    sequence = cache.open()
    cache.close()
    with pytest.raises(Closed, match="cache is closed"):
        cache.step({sequence: 10})
