"""Kernels that read a sequence's memory later than the cache's calls return: on the stand-in, which reports
memory that is taken away or overwritten under queued work."""

import gc
import random

import cuda_standin
import pytest
import torch
from core_pool import settle
from cuda_calls import SUCCESS, Cuda
from own_pool import own_pool

from vmm import Error, KVCache, OutOfPages, _core

PAGE = 65536
TOKENS = 64  # in a page: 1 KiB each


@pytest.fixture
def standin():
    found = cuda_standin.configured(granularity=PAGE)
    gc.collect()  # what an exception's frames hold on to
    found.reported = found.reports  # by others, on purpose
    with found.counting():
        yield found
        found.sync_all()
        assert found.reports == found.reported, found.last_report
    cuda_standin.configured(granularity=4096)


@pytest.fixture
def cuda(standin):
    """This thread's own calls to libcuda."""
    made = Cuda(standin.library)
    made.do("cuInit", 0)
    made.do("cuCtxSetCurrent", made.get_number("cuDevicePrimaryCtxRetain", 0))
    yield made
    made.do("cuCtxSetCurrent", None)
    made.do("cuDevicePrimaryCtxRelease", 0)


@pytest.fixture
def pool(cuda):
    core = _core.Pool(
        8 * PAGE, arena_bytes=1 << 30, pager_thread=False, cuda_device=0, cuda_host_accessible=True
    )
    yield own_pool(core)
    core.check()
    core.close()


@pytest.fixture
def streams(pool, standin):
    """Two, A and B."""
    made = [pool._core.create_stream() for _ in range(2)]
    yield made
    standin.sync_all()
    for stream in made:
        pool._core.destroy_stream(stream)


def make(pool, slots=2, pages=6):
    return KVCache(
        2,
        4,
        32,
        torch.float16,
        max_tokens=pages * TOKENS,
        max_sequences=slots,
        pool=pool,
        page_bytes=PAGE,
        layers_per_extent=2,
    )


def step(cache, stream, *wanted):
    """Of (sequence, length) each."""
    slots, lengths = zip(*wanted, strict=True)
    cache.step(
        torch.tensor([sequence.slot for sequence in slots], dtype=torch.int32),
        torch.tensor(lengths, dtype=torch.int32),
        stream,
    )


class Kernel:
    """Reads what ``sequence`` holds, or writes it from ``start`` on, after so much other work (``late``) that
    the stand-in will not have come to it before it is waited for."""

    def __init__(self, standin, stream, sequence, start=None, late=500):
        self.over = False
        lease = sequence.cache._leases[0]
        first = lease.address + sequence.slot * lease.extent_bytes
        for _ in range(late):
            standin.launch(stream)
        end = first + 1024 * sequence.length
        if start is None:
            used = {"reads": [(first, end - first)]}
        else:
            used = {"writes": [(first + 1024 * start, end - first - 1024 * start)]}
        assert standin.launch(stream, self._run, **used) == SUCCESS

    def _run(self):
        self.over = True


def busy(standin, cache, stream, pages, start=None):
    """A sequence in an epoch of ``stream`` that is open, and the kernel that reads it."""
    sequence = cache.open(0, stream)
    step(cache, stream, (sequence, pages * TOKENS))
    return sequence, Kernel(standin, stream, sequence, start)


def test_the_same_stream_takes_the_slot_and_waits_for_nothing(standin, pool, streams):
    cache = make(pool, slots=1)
    old, kernel = busy(standin, cache, streams[0], 3)
    slot = old.slot
    old.close()
    new = cache.open(3 * TOKENS, streams[0])
    stalls = pool._core.stats()["stalls"]
    step(cache, streams[0], (new, 3 * TOKENS))
    assert new.slot == slot
    assert not kernel.over
    assert pool._core.stats()["stalls"] == stalls
    Kernel(standin, streams[0], new, start=0, late=0)  # after the old kernel, by the stream's order
    assert not kernel.over
    cache.close()


@pytest.mark.parametrize("tokens", [1, 3 * TOKENS, 5 * TOKENS])
def test_another_stream_waits_for_the_slot(standin, pool, streams, tokens):
    cache = make(pool, slots=1)
    old, kernel = busy(standin, cache, streams[0], 3)
    old.close()
    new = cache.open(tokens, streams[1])
    # Only whoever runs the first stream can end its epoch.
    with pytest.raises(Error, match="open"):
        step(cache, streams[1], (new, tokens))
    assert new.length == 0
    assert not kernel.over
    cache.end(streams[0])
    step(cache, streams[1], (new, tokens))
    assert kernel.over
    assert new.length == tokens
    Kernel(standin, streams[1], new, start=0)
    cache.close()


def test_the_slot_is_waited_for_until_it_has_been_stepped(standin, pool, streams):
    """Opened, closed and opened again: nobody has waited yet. Nor has one whose first step was refused."""
    cache = make(pool, slots=1)
    old, kernel = busy(standin, cache, streams[0], 3)
    old.close()
    cache.end(streams[0])
    cache.open(0, streams[1]).close()
    new = cache.open(0, streams[1])
    pool._core.budget.set_limit(3 * PAGE)
    assert not kernel.over
    with pytest.raises(OutOfPages):
        step(cache, streams[1], (new, 5 * TOKENS))
    step(cache, streams[1], (new, 1))
    assert kernel.over
    Kernel(standin, streams[1], new, start=0, late=0)
    cache.close()


def test_a_slot_that_is_ready_is_preferred(standin, pool, streams):
    cache = make(pool, slots=2)
    old, kernel = busy(standin, cache, streams[0], 3)
    slot = old.slot
    old.close()
    new = cache.open(3 * TOKENS, streams[1])
    assert new.slot != slot
    step(cache, streams[1], (new, TOKENS))
    assert not kernel.over
    Kernel(standin, streams[1], new, start=0, late=0)
    third = cache.open(3 * TOKENS, streams[0])
    assert third.slot == slot
    step(cache, streams[0], (third, 3 * TOKENS))
    assert not kernel.over
    cache.close()


@pytest.mark.parametrize("release", ["close", "truncate"])
def test_pressure_on_the_same_stream_waits(standin, pool, streams, release):
    cache = make(pool)
    old, kernel = busy(standin, cache, streams[0], 6)
    if release == "close":
        old.close()
    else:
        old.truncate(TOKENS)
    new = cache.open(0, streams[0])
    step(cache, streams[0], (new, 6 * TOKENS))
    assert kernel.over == (new.slot != 0 or release == "truncate")
    Kernel(standin, streams[0], new, start=0, late=0)
    cache.close()


@pytest.mark.parametrize("release", ["close", "truncate"])
def test_pressure_on_another_stream_waits_unless_the_epoch_is_open(standin, pool, streams, release):
    cache = make(pool)
    old, kernel = busy(standin, cache, streams[0], 6)
    if release == "close":
        old.close()
    else:
        old.truncate(TOKENS)
    new = cache.open(0, streams[1])
    with pytest.raises(OutOfPages) as caught:
        step(cache, streams[1], (new, 6 * TOKENS))
    assert caught.value.fitting == ()
    assert not kernel.over
    assert new.length == 0
    cache.end(streams[0])
    step(cache, streams[1], (new, 6 * TOKENS))
    assert kernel.over
    cache.close()


def test_what_a_stream_that_is_named_still_reads(standin, pool, streams):
    """close(stream): work that the cache was never told about."""
    cache = make(pool)
    old = cache.open(0, streams[0])
    step(cache, streams[0], (old, 6 * TOKENS))
    cache.end(streams[0])
    kernel = Kernel(standin, streams[1], old)
    old.close(streams[1])
    new = cache.open(0, streams[0])
    step(cache, streams[0], (new, 6 * TOKENS))
    if new.slot != 0:
        assert kernel.over
    Kernel(standin, streams[0], new, start=0, late=0)
    cache.close()


def test_trimming_waits(standin, pool, streams):
    cache = make(pool)
    old, kernel = busy(standin, cache, streams[0], 4)
    old.truncate(TOKENS)
    assert pool._core.trim(PAGE) == 0  # only whoever runs the stream can end its epoch
    cache.end(streams[0])
    assert not kernel.over
    assert pool._core.trim(1 << 40) >= 3 * PAGE
    assert kernel.over
    assert old.length == TOKENS
    cache.close()


def test_an_idle_engine_gives_everything_back(standin, pool, streams):
    cache = make(pool)
    kernels = []
    for stream in streams:
        sequence, kernel = busy(standin, cache, stream, 2)
        kernels.append(kernel)
        sequence.close()
    for stream in streams:
        cache.end(stream)
    assert pool._core.trim(1 << 40) >= 4 * PAGE
    assert all(kernel.over for kernel in kernels)
    assert pool._core.stats()["created_bytes"] == 0
    cache.close()


def test_a_cache_that_is_closed_waits(standin, pool, streams):
    """Its memory passes to another cache, whose kernels are on another stream."""
    cache = make(pool)
    _, kernel = busy(standin, cache, streams[0], 6)
    cache.close()
    another = make(pool)
    new = another.open(0, streams[1])
    with pytest.raises(OutOfPages):
        step(another, streams[1], (new, 6 * TOKENS))
    pool._core.end(streams[0])
    step(another, streams[1], (new, 6 * TOKENS))
    assert kernel.over
    Kernel(standin, streams[1], new, start=0, late=0)
    another.close()


def test_a_cache_that_is_adopted_on_another_stream_than_its_own(standin, pool, streams, monkeypatch):
    """torch's stream when a cache is made need not be the one that its steps are on."""
    monkeypatch.setattr("vmm.stream._current_stream", lambda ordinal: streams[0])
    pool._runs_late = True
    cache = make(pool)
    sequence = cache.open()
    step(cache, streams[0], (sequence, 3 * TOKENS))
    Kernel(standin, streams[0], sequence)
    cache.end(streams[0])
    cache.close()
    another = make(pool)
    new = another.open(0, streams[1])
    step(another, streams[1], (new, 3 * TOKENS))
    Kernel(standin, streams[1], new, start=0, late=0)
    another.close()


def test_the_pager_works_beside_kernels(standin, pool, streams):
    cache = make(pool)
    old, kernel = busy(standin, cache, streams[0], 1)
    old.announce(4 * TOKENS)
    settle(pool._core)
    assert not kernel.over
    stalls = pool._core.stats()["stalls"]
    step(cache, streams[0], (old, 4 * TOKENS))
    assert not kernel.over
    assert pool._core.stats()["stalls"] == stalls
    cache.close()


@pytest.mark.parametrize("seed", range(12))
def test_two_batches_in_flight(standin, pool, streams, seed):
    """Sequences come, grow and go on two streams, with kernels that write new tokens and read all, in too
    little memory."""
    choose = random.Random(seed)
    cache = make(pool, slots=4, pages=3)
    batches = [[], []]
    closed = refused = waited_for_an_end = 0
    for iteration in range(60):
        stream, batch = streams[iteration % 2], batches[iteration % 2]
        for sequence in [each for each in batch if choose.random() < 0.2]:
            batch.remove(sequence)
            sequence.close()
            closed += 1
        if cache.stats().sequences < 4 and choose.random() < 0.7:
            batch.append(cache.open(choose.choice([0, 1, TOKENS]), stream))
        lengths = [sequence.length for sequence in batch]
        wanted = [min(length + choose.choice([1, 1, 40]), 3 * TOKENS) for length in lengths]
        try:
            cache.step(
                torch.tensor([sequence.slot for sequence in batch], dtype=torch.int32),
                torch.tensor(wanted, dtype=torch.int32),
                stream,
            )
        except OutOfPages:
            refused += 1
            batch.pop().close()
            continue
        except Error:
            waited_for_an_end += 1
            cache.end(streams[1 - iteration % 2])
            continue
        for sequence, start in zip(batch, lengths, strict=True):
            Kernel(standin, stream, sequence, start, late=choose.choice([0, 3]))
            Kernel(standin, stream, sequence, late=0)
        pool._core.poll()
        pool.check()
        assert standin.reports == standin.reported, standin.last_report
    assert closed > 5
    assert refused < 40
    assert waited_for_an_end < 20
    cache.close()
    for stream in streams:
        pool._core.end(stream)
