"""What a slot holds before and after its sequence: the tail, what others left, what was prepared."""

import pytest
import torch
from core_pool import settle
from naive_sequences import contents
from own_pool import PAGE, faulty_pool, step

from vmm import KVCache, OutOfPages

TOKENS = 100
PAGE_EACH = {"layers": 1, "kv_heads": 1, "head_dim": 512, "layers_per_extent": 1}  # for each token


def make(pool, dtype=torch.float32, **options):
    return KVCache(
        **({"layers": 2, "kv_heads": 3, "head_dim": 5, "max_tokens": TOKENS, "max_sequences": 3} | options),
        dtype=dtype,
        pool=pool,
        page_bytes=PAGE,
    )


@pytest.fixture
def pool():
    made = faulty_pool(64)
    yield made
    made._core.end(0)
    made.check()
    made.close()


def fill_with_nan(pool, dtype):
    """Leaves memory in the pool whose bytes, which are finite in float32, are NaN in the others."""
    cache = make(pool)
    sequences = [cache.open() for _ in range(3)]
    step(cache, *((sequence, TOKENS) for sequence in sequences))
    for sequence in sequences:
        for part in sequence.kv(0) + sequence.kv(1):
            part[:] = contents(list(range(TOKENS)), 0, (3, 5), torch.float32).view(torch.float32)
            assert part.isfinite().all()
            assert part.view(dtype).isnan().any()
    cache.close()
    pool._core.end(0)


@pytest.mark.parametrize("layout", ["token-major", "head-major"])
@pytest.mark.parametrize("ends", ["truncate", "close"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_tail_is_finite_although_a_step_was_never_written(pool, dtype, ends, layout):
    """The forward after a step may fail: what it was to write is the tail of something later."""
    fill_with_nan(pool, dtype)
    pool._core.budget.set_limit(pool._core.stats()["created_bytes"])  # nothing else is left
    cache = make(pool, dtype, tail_tokens=60, layout=layout, max_sequences=1)
    sequence = cache.open()
    step(cache, (sequence, 40))
    if ends == "truncate":
        sequence.truncate(1)
    else:
        sequence.close()
        sequence = cache.open()
        step(cache, (sequence, 1))
    for layer in range(2):
        for part in cache.kv(layer):
            assert part[sequence.slot, 1:61].isfinite().all()
    cache.close()


def test_the_next_arrival_takes_what_was_prepared_for_it(pool):
    core = pool._core
    with make(pool) as cache:
        first = cache.open()
        step(cache, (first, 1))
        settle(core)
        stalls = core.stats()["stalls"]
        second = cache.open()
        step(cache, (second, 1))
        assert core.stats()["stalls"] == stalls


def test_a_prompt_is_mapped_while_it_waits(pool):
    core = pool._core
    with make(pool, tail_tokens=20) as cache:
        first = cache.open(50)
        settle(core)
        step(cache, (first, 50))
        assert core.stats()["stalls"] == 0
        first.announce(TOKENS)
        settle(core)
        step(cache, (first, TOKENS))
        assert core.stats()["stalls"] == 0
        assert core.stats()["pages_mapped_ahead"] > 0


@pytest.mark.parametrize("tail", [0, 20])
def test_what_is_announced_again_is_mapped_again(pool, tail):
    """After a truncation, pressure, and an announcement of nothing."""
    core = pool._core
    with make(pool, tail_tokens=tail) as cache:
        sequence = cache.open(TOKENS)
        settle(core)
        step(cache, (sequence, TOKENS))
        sequence.announce(0)
        sequence.truncate(1)
        cache.end()
        core.trim(1 << 40)
        sequence.announce(0)
        sequence.announce(TOKENS)
        settle(core)
        step(cache, (sequence, TOKENS))
        assert core.stats()["stalls"] == 0


def test_a_fresh_sequence_s_announcement_of_nothing_announces_nothing(pool):
    core = pool._core
    with make(pool, tail_tokens=20) as cache:
        sequence = cache.open()
        sequence.announce(0)
        sequence.announce(TOKENS)
        settle(core)
        step(cache, (sequence, TOKENS))
        assert core.stats()["stalls"] == 0


@pytest.mark.parametrize("tail", [0, 5])
def test_decoding_never_waits_where_the_pager_keeps_up(pool, tail):
    core = pool._core
    with make(pool, **PAGE_EACH, max_tokens=15, tail_tokens=tail) as cache:
        sequences = [cache.open() for _ in range(3)]
        settle(core)
        for length in range(1, 16):
            step(cache, *((sequence, length) for sequence in sequences))
            settle(core)
            assert core.stats()["stalls"] == 0
        assert core.stats()["pages_mapped_waiting"] == 0


def test_decoding_goes_on_without_waiting_after_going_back(pool):
    core = pool._core
    with make(pool, **PAGE_EACH) as cache:
        sequence = cache.open(20)
        step(cache, (sequence, 20))
        sequence.truncate(2)
        cache.end()
        core.trim(1 << 40)
        step(cache, (sequence, 3))
        stalls = core.stats()["stalls"]
        for length in range(4, 15):
            settle(core)
            step(cache, (sequence, length))
        assert core.stats()["stalls"] == stalls


def test_the_best_fit(pool):
    """A closed slot that holds a prompt, the smallest such; else the largest."""
    with make(pool, **PAGE_EACH) as cache:
        lengths = (30, 10, 20)
        sequences = [cache.open() for _ in lengths]
        step(cache, *((sequence, 1) for sequence in sequences))  # so slots are made ready for one token
        step(cache, *zip(sequences, lengths, strict=True))
        slots = {length: sequence.slot for length, sequence in zip(lengths, sequences, strict=True)}
        for sequence in sequences:
            sequence.close()
        cache.end()
        for prompt, expected in ((15, 20), (21, 30), (5, 10), (0, 10), (40, 30), (20, 20)):
            with cache.open(prompt) as sequence:
                assert sequence.slot == slots[expected], prompt


def test_those_that_fit_are_named_in_the_order_given(pool):
    """Of 24 pages, 24 and 1, one of the large and the small one fit into 40."""
    core = pool._core
    with make(pool, **PAGE_EACH) as cache:
        a, b, c = (cache.open() for _ in range(3))
        core.budget.set_limit(40 * PAGE)
        for order in ((a, b, c), (c, b, a), (b, c, a)):
            wanted = {a: 24, b: 24, c: 1}
            with pytest.raises(OutOfPages) as caught:
                step(cache, *((sequence, wanted[sequence]) for sequence in order))
            first = next(sequence for sequence in order if sequence is not c)
            expected = [sequence.slot for sequence in order if sequence is first or sequence is c]
            assert list(caught.value.fitting) == expected
        step(cache, (b, 24), (c, 1))
        with pytest.raises(OutOfPages) as caught:
            step(cache, (a, 16), (b, 24), (c, 1))
        assert list(caught.value.fitting) == [b.slot, c.slot]  # they need nothing
        del caught


def test_those_that_fit_are_sequences_where_sequences_were_given(pool):
    with make(pool, **PAGE_EACH) as cache:
        a, b, c = (cache.open() for _ in range(3))
        pool._core.budget.set_limit(40 * PAGE)
        wanted = {a: 24, b: 24, c: 1}
        for order, fitting in (((a, b, c), (a, c)), ((c, b, a), (c, b)), ((b, c, a), (b, c))):
            with pytest.raises(OutOfPages) as caught:
                cache.step({sequence: wanted[sequence] for sequence in order})
            assert caught.value.fitting == fitting
            assert a.length == b.length == c.length == 0
        with pytest.raises(OutOfPages) as caught:
            cache.step({a: 41})
        assert caught.value.fitting == ()
        cache.step({sequence: wanted[sequence] for sequence in (a, c)})
        del caught


def test_what_is_mapped_ahead_for_one_may_go_to_another(pool):
    """Then the one does not fit any more, although nothing of it is missing yet."""
    core = pool._core
    with make(pool, **PAGE_EACH) as cache:
        a, b = cache.open(), cache.open()
        core.budget.set_limit(40 * PAGE)
        a.announce(24)
        settle(core)
        for order, fitting in (((b, a), (b,)), ((a, b), (a,))):
            with pytest.raises(OutOfPages) as caught:
                step(cache, *((sequence, {a: 24, b: 30}[sequence]) for sequence in order))
            assert list(caught.value.fitting) == [sequence.slot for sequence in fitting]
            del caught


def test_slots_lie_ready_for_who_comes_unannounced():
    """With the pages of as much as lately came in a first step, and one slot more than came at once."""
    pool = faulty_pool(128)
    core = pool._core
    with pool, make(pool, **PAGE_EACH, max_sequences=6) as cache:
        step(cache, *((cache.open(), 20) for _ in range(2)))
        settle(core)
        stalls = core.stats()["stalls"]
        stats = cache.stats()
        assert stats.mapped_bytes == stats.running_bytes + 3 * 20 * PAGE
        step(cache, *((cache.open(30, announce=0), 20) for _ in range(3)))
        assert core.stats()["stalls"] == stalls


def test_what_lies_ready_gives_way(pool):
    """To what is announced and to what is used."""
    core = pool._core
    with make(pool, **PAGE_EACH, max_sequences=6, first_tokens=20) as cache:
        settle(core)
        assert cache.stats().mapped_bytes == 20 * PAGE  # before anybody came
        core.budget.set_limit(34 * PAGE)
        a = cache.open(25)
        settle(core)
        step(cache, (a, 25))
        b = cache.open(5)
        settle(core)
        step(cache, (a, 25), (b, 5))
        assert core.stats()["pages_mapped_waiting"] == 0
        step(cache, (a, 25), (b, 9))
        with pytest.raises(OutOfPages):
            step(cache, (a, 25), (b, 10))
