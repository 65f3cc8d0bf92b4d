"""Memory that kernels may still read when the cache's calls return: nobody else gets it meanwhile."""

import pytest
from core_pool import settle
from late_kernels import PAGE, TOKENS, Kernel, busy, make, step

from vmm import Error, OutOfPages


def test_the_same_stream_takes_the_slot_and_waits_for_nothing(standin, gpu_pool, streams):
    cache = make(gpu_pool, slots=1)
    old, kernel = busy(standin, cache, streams[0], 3)
    slot = old.slot
    old.close()
    new = cache.open(3 * TOKENS, stream=streams[0])
    stalls = gpu_pool._core.stats()["stalls"]
    step(cache, streams[0], (new, 3 * TOKENS))
    assert new.slot == slot
    assert not kernel.over
    assert gpu_pool._core.stats()["stalls"] == stalls
    Kernel(standin, streams[0], new, start=0, late=0)  # after the old kernel, by the stream's order
    assert not kernel.over
    cache.close()


@pytest.mark.parametrize("tokens", [1, 3 * TOKENS, 5 * TOKENS])
def test_another_stream_waits_for_the_slot(standin, gpu_pool, streams, tokens):
    cache = make(gpu_pool, slots=1)
    old, kernel = busy(standin, cache, streams[0], 3)
    old.close()
    new = cache.open(tokens, stream=streams[1])
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


def test_the_slot_is_waited_for_until_it_has_been_stepped(standin, gpu_pool, streams):
    """Opened, closed and opened again: nobody has waited yet. Nor has one whose first step was refused."""
    cache = make(gpu_pool, slots=1)
    old, kernel = busy(standin, cache, streams[0], 3)
    old.close()
    cache.end(streams[0])
    cache.open(0, stream=streams[1]).close()
    new = cache.open(0, stream=streams[1])
    gpu_pool._core.budget.set_limit(3 * PAGE)
    assert not kernel.over
    with pytest.raises(OutOfPages):
        step(cache, streams[1], (new, 5 * TOKENS))
    step(cache, streams[1], (new, 1))
    assert kernel.over
    Kernel(standin, streams[1], new, start=0, late=0)
    cache.close()


def test_a_slot_that_is_ready_is_preferred(standin, gpu_pool, streams):
    cache = make(gpu_pool, slots=2)
    old, kernel = busy(standin, cache, streams[0], 3)
    slot = old.slot
    old.close()
    new = cache.open(3 * TOKENS, stream=streams[1])
    assert new.slot != slot
    step(cache, streams[1], (new, TOKENS))
    assert not kernel.over
    Kernel(standin, streams[1], new, start=0, late=0)
    third = cache.open(3 * TOKENS, stream=streams[0])
    assert third.slot == slot
    step(cache, streams[0], (third, 3 * TOKENS))
    assert not kernel.over
    cache.close()


def released(standin, cache, stream, release):
    """The kernel that still reads what a sequence has released, all of it or all but a page."""
    old, kernel = busy(standin, cache, stream, 6)
    if release == "close":
        old.close()
    else:
        old.truncate(TOKENS)
    return kernel


@pytest.mark.parametrize("release", ["close", "truncate"])
def test_pressure_on_the_same_stream_waits(standin, gpu_pool, streams, release):
    cache = make(gpu_pool)
    kernel = released(standin, cache, streams[0], release)
    new = cache.open(0, stream=streams[0])
    step(cache, streams[0], (new, 6 * TOKENS))
    assert kernel.over == (new.slot != 0 or release == "truncate")
    Kernel(standin, streams[0], new, start=0, late=0)
    cache.close()


@pytest.mark.parametrize("release", ["close", "truncate"])
def test_pressure_on_another_stream_waits_unless_the_epoch_is_open(standin, gpu_pool, streams, release):
    cache = make(gpu_pool)
    kernel = released(standin, cache, streams[0], release)
    new = cache.open(0, stream=streams[1])
    with pytest.raises(OutOfPages) as caught:
        step(cache, streams[1], (new, 6 * TOKENS))
    assert caught.value.fitting == ()
    assert not kernel.over
    assert new.length == 0
    cache.end(streams[0])
    step(cache, streams[1], (new, 6 * TOKENS))
    assert kernel.over
    cache.close()


def test_what_a_stream_that_is_named_still_reads(standin, gpu_pool, streams):
    """close(stream): work that the cache was never told about."""
    cache = make(gpu_pool)
    old = cache.open(0, stream=streams[0])
    step(cache, streams[0], (old, 6 * TOKENS))
    cache.end(streams[0])
    kernel = Kernel(standin, streams[1], old)
    old.close(streams[1])
    new = cache.open(0, stream=streams[0])
    step(cache, streams[0], (new, 6 * TOKENS))
    if new.slot != 0:
        assert kernel.over
    Kernel(standin, streams[0], new, start=0, late=0)
    cache.close()


def test_trimming_waits(standin, gpu_pool, streams):
    cache = make(gpu_pool)
    old, kernel = busy(standin, cache, streams[0], 4)
    old.truncate(TOKENS)
    assert gpu_pool._core.trim(PAGE) == 0  # only whoever runs the stream can end its epoch
    cache.end(streams[0])
    assert not kernel.over
    assert gpu_pool._core.trim(1 << 40) >= 3 * PAGE
    assert kernel.over
    assert old.length == TOKENS
    cache.close()


def test_an_idle_engine_gives_everything_back(standin, gpu_pool, streams):
    cache = make(gpu_pool)
    kernels = []
    for stream in streams:
        sequence, kernel = busy(standin, cache, stream, 2)
        kernels.append(kernel)
        sequence.close()
    for stream in streams:
        cache.end(stream)
    assert gpu_pool._core.trim(1 << 40) >= 4 * PAGE
    assert all(kernel.over for kernel in kernels)
    assert gpu_pool._core.stats()["created_bytes"] == 0
    cache.close()


def test_a_cache_that_is_closed_waits(standin, gpu_pool, streams):
    """Its memory passes to another cache, whose kernels are on another stream."""
    cache = make(gpu_pool)
    _, kernel = busy(standin, cache, streams[0], 6)
    cache.close()
    another = make(gpu_pool)
    new = another.open(0, stream=streams[1])
    assert not kernel.over
    step(another, streams[1], (new, 6 * TOKENS))
    assert kernel.over
    Kernel(standin, streams[1], new, start=0, late=0)
    another.close()


def test_a_cache_that_is_adopted_on_another_stream_than_its_own(standin, gpu_pool, streams, monkeypatch):
    """torch's stream when a cache is made need not be the one that its steps are on."""
    monkeypatch.setattr("vmm.stream._current_stream", lambda ordinal: streams[0])
    gpu_pool._runs_late = True
    cache = make(gpu_pool)
    sequence = cache.open()
    step(cache, streams[0], (sequence, 3 * TOKENS))
    Kernel(standin, streams[0], sequence)
    cache.end(streams[0])
    cache.close()
    another = make(gpu_pool)
    new = another.open(0, stream=streams[1])
    step(another, streams[1], (new, 3 * TOKENS))
    Kernel(standin, streams[1], new, start=0, late=0)
    another.close()


def test_the_pager_works_beside_kernels(standin, gpu_pool, streams):
    cache = make(gpu_pool)
    old, kernel = busy(standin, cache, streams[0], 1)
    old.announce(4 * TOKENS)
    settle(gpu_pool._core)
    assert not kernel.over
    stalls = gpu_pool._core.stats()["stalls"]
    step(cache, streams[0], (old, 4 * TOKENS))
    assert not kernel.over
    assert gpu_pool._core.stats()["stalls"] == stalls
    cache.close()
