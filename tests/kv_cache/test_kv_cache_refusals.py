"""Bad input is a clear exception that names the argument, and nothing has changed."""

import array

import numpy as np
import pytest
import torch
from own_pool import int32, one_pool

from vmm import Closed, InvalidArgument, KVCache, Pool

SHAPE = {"layers": 2, "kv_heads": 3, "head_dim": 5, "dtype": torch.float32}
SIZE = {"max_tokens": 100, "max_sequences": 3, "page_bytes": 4096}


pool = pytest.fixture(one_pool, scope="module")


@pytest.fixture
def cache(pool):
    """Slots 0 and 1 are open, with 10 and 20 tokens; slot 2 is not."""
    with KVCache(**SHAPE, **SIZE, pool=pool) as cache:
        sequences = sorted((cache.open() for _ in range(2)), key=lambda sequence: sequence.slot)
        assert [sequence.slot for sequence in sequences] == [0, 1]
        cache.step(int32(0, 1), int32(10, 20))
        for sequence in sequences:
            for part in sequence.kv(1):
                part[:] = 1.0 + sequence.slot
        cache.sequences = sequences
        yield cache
        assert cache.stats().sequences == 2
        for sequence, length in zip(sequences, (10, 20), strict=True):
            assert sequence.length == length
            for part in sequence.kv(1):
                assert part.shape == (length, 3, 5)
                assert (part == 1.0 + sequence.slot).all()
        assert cache.stats().live_bytes == 30 * 2 * 2 * 3 * 5 * 4


STEPS = {
    "a slot that is closed": ([0, 2], [11, 5], r"slots\[1\] is 2; .* open"),
    "a slot twice": ([0, 1, 0], [11, 21, 12], r"slots\[2\] is 0, for the second time"),
    "a slot past the end": ([0, 3], [11, 1], r"slots\[1\] is 3; .* open"),
    "a slot far past the end": ([2**31 - 1], [1], r"slots\[0\] is 2147483647"),
    "a negative slot": ([0, -1], [11, 1], r"slots\[1\] is -1"),
    "a negative length": ([0, 1], [11, -21], r"lengths\[1\] is -21"),
    "less than before": ([0, 1], [11, 19], r"lengths\[1\] is 19, less than before"),
    "more than max_tokens": ([0, 1], [11, 101], r"lengths\[1\] is 101; max_tokens is 100"),
    "much more than max_tokens": ([0, 1], [11, 2**31 - 1], r"lengths\[1\] is 2147483647; max_tokens"),
    "fewer lengths": ([0, 1], [11], r"lengths has 1 elements; expected 2"),
    "more lengths": ([0], [11, 21], r"lengths has 2 elements; expected 1"),
    "no slots": ([], [11], r"lengths has 1 elements; expected 0"),
}


@pytest.mark.parametrize("name", STEPS)
def test_a_step_that_makes_no_sense(cache, name):
    slots, lengths, message = STEPS[name]
    with pytest.raises(InvalidArgument, match=message):
        cache.step(int32(*slots), int32(*lengths))


def test_a_refused_step_is_forgotten(cache):
    """The numbers of a step that was refused half-way are not taken for a repetition in the next."""
    for _ in range(3):
        with pytest.raises(InvalidArgument, match=r"slots\[2\]"):
            cache.step(int32(0, 1, 2), int32(11, 21, 1))
    cache.step(int32(1, 0), int32(20, 10))
    cache.step(int32(), int32())


ARRAYS = {
    "int64": torch.tensor([0, 1]),
    "int16": torch.tensor([0, 1], dtype=torch.int16),
    "floats": torch.tensor([0.0, 1.0]),
    "a column": int32(0, 1)[:, None],
    "a number": torch.tensor(1, dtype=torch.int32),
    "every second": int32(0, 9, 1, 9)[::2],
    "elsewhere": torch.empty(2, dtype=torch.int32, device="meta"),
    "array of int64": array.array("q", [0, 1]),
    "array of uint32": array.array("I", [0, 1]),
    "array of floats": array.array("f", [0, 1]),
    "NumPy int64": np.array([0, 1]),
    "NumPy uint32": np.array([0, 1], dtype=np.uint32),
    "NumPy column": np.array([[0], [1]], dtype=np.int32),
    "NumPy number": np.array(1, dtype=np.int32),
    "every second of NumPy": np.array([0, 9, 1, 9], dtype=np.int32)[::2],
    "the other byte order": np.array([0, 1], dtype=">i4"),
    "a list": [0, 1],
    "a tuple": (0, 1),
    "a range": range(2),
    "bytes": bytes(8),
    "a number of Python": 1,
    "nothing": None,
}


@pytest.mark.parametrize("name", ARRAYS)
@pytest.mark.parametrize("argument", ["slots", "lengths"])
def test_an_array_of_another_kind(cache, name, argument):
    arrays = {"slots": int32(0, 1), "lengths": int32(11, 21), argument: ARRAYS[name]}
    with pytest.raises(InvalidArgument, match=rf"^{argument} (is|has) .*expected .*int32"):
        cache.step(**arrays)


@pytest.mark.parametrize(
    "make",
    [
        lambda *numbers: array.array("i", numbers),
        lambda *numbers: np.array(numbers, dtype=np.int32),
        lambda *numbers: memoryview(array.array("i", numbers)),
    ],
    ids=["array", "NumPy", "memoryview"],
)
def test_arrays_that_are_taken(cache, make):
    """What follows would fail otherwise; the cache is left as it was found."""
    cache.step(make(1, 0), make(33, 44))
    assert [sequence.length for sequence in cache.sequences] == [44, 33]
    cache.step(make(), make())
    for sequence, length in zip(cache.sequences, (10, 20), strict=True):
        sequence.truncate(length)


def test_more_sequences_than_there_are_slots(cache):
    third = cache.open()
    with pytest.raises(InvalidArgument, match="max_sequences is 3: all of them are open"):
        cache.open()
    third.close()
    cache.open().close()


@pytest.mark.parametrize("tokens", [-1, 101, 10.0, True, None, "7"])
def test_tokens_that_are_no_number_of_tokens(cache, tokens):
    first = cache.sequences[0]
    with pytest.raises(InvalidArgument, match=r"^prompt_tokens is .*; expected 0 to 100"):
        cache.open(tokens)
    with pytest.raises(InvalidArgument, match=r"^tokens is .*; expected 0 to 100"):
        first.announce(tokens)
    with pytest.raises(InvalidArgument, match=r"^n is .*; expected 0 to 1"):
        first.truncate(tokens)


def test_truncating_to_more(cache):
    with pytest.raises(InvalidArgument, match=r"is 11.* has 10"):
        cache.sequences[0].truncate(11)


@pytest.mark.parametrize("layer", [-1, 2, 0.0, None])
def test_a_layer_that_is_not_there(cache, layer):
    with pytest.raises(InvalidArgument, match=r"^layer is .*; expected 0 to 1"):
        cache.kv(layer)
    with pytest.raises(InvalidArgument, match=r"^layer is .*; expected 0 to 1"):
        cache.sequences[0].kv(layer)


@pytest.mark.parametrize("stream", ["0", -1, 1.5, True])
def test_a_stream_that_is_none(cache, stream):
    sequence = cache.sequences[0]
    for call in (
        lambda: cache.step(int32(0), int32(11), stream),
        lambda: cache.end(stream),
        lambda: cache.open(1, stream=stream),
        lambda: sequence.close(stream),
    ):
        with pytest.raises(InvalidArgument, match="stream is"):
            call()


def test_a_closed_sequence(cache):
    sequence = cache.open()
    other = cache.sequences[0]
    slot = sequence.slot
    sequence.close()
    sequence.close()
    assert cache.stats().sequences == 2
    for call in (
        lambda: sequence.slot,
        lambda: sequence.length,
        lambda: sequence.kv(0),
        lambda: sequence.announce(1),
        lambda: sequence.truncate(0),
        lambda: cache.batch([other, sequence]),
    ):
        with pytest.raises(Closed, match="sequence is closed"):
            call()
    with pytest.raises(InvalidArgument, match=rf"slots\[0\] is {slot}; .* open"):
        cache.step(int32(slot), int32(1))
    with cache.open() as again:
        assert again.slot == slot
        assert again.length == 0
        sequence.close()  # it is not its slot any more
        assert again.length == 0


def test_a_closed_cache(pool):
    cache = KVCache(**SHAPE, **SIZE, pool=pool)
    sequence = cache.open()
    cache.step(int32(sequence.slot), int32(50))
    cache.close()
    cache.close()
    for call in (
        lambda: cache.step(int32(0), int32(60)),
        cache.end,
        cache.open,
        lambda: cache.kv(0),
        lambda: cache.batch([sequence]),
        cache.stats,
        lambda: cache.tokens_per_slot,
        lambda: sequence.length,
        lambda: sequence.kv(0),
        lambda: sequence.announce(1),
        lambda: sequence.truncate(0),
    ):
        with pytest.raises(Closed, match="cache is closed"):
            call()
    sequence.close()
    with KVCache(**SHAPE, **SIZE, pool=pool) as another, another.open() as first:
        another.step(int32(first.slot), int32(100))


def test_a_cache_whose_sequences_are_left_to_it(pool):
    with KVCache(**SHAPE, **SIZE, pool=pool) as cache, cache.open():
        cache.close()
    assert pool.stats().kept_bytes == 0


def test_a_closed_pool():
    pool = Pool("1MiB")
    cache = KVCache(**SHAPE, **SIZE, pool=pool)
    sequence = cache.open()
    cache.end()
    pool.close()
    with pytest.raises(Closed, match="pool is closed"):
        cache.step(int32(sequence.slot), int32(50))
    assert sequence.length == 0
    with pytest.raises(Closed, match="pool is closed"):
        KVCache(**SHAPE, **SIZE, pool=pool)
    cache.end()
    cache.close()
