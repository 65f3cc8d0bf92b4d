"""What was closed is held back by the work that may read it, and by no other."""

import pytest
from late_kernels import PAGE, TOKENS, Kernel, busy, make, step

ALL = 1 << 40


@pytest.mark.parametrize("theirs_closes", [False, True])
def test_another_cache_s_open_epoch_holds_nothing_back(standin, gpu_pool, streams, theirs_closes):
    """Nor does the stream that its sequence names when it closes: that belongs to this sequence alone."""
    first, second = make(gpu_pool, pages=2), make(gpu_pool, pages=2)
    theirs, kernel = busy(standin, first, streams[0], 2)
    closed, other = busy(standin, second, streams[1], 2)
    if theirs_closes:
        theirs.close(streams[0])
    closed.close(streams[1])
    assert gpu_pool._core.trim(ALL) == 0
    second.end(streams[1])
    assert gpu_pool._core.trim(ALL) == 2 * PAGE
    assert other.over
    assert not kernel.over
    first.close()
    second.close()


@pytest.mark.parametrize("told", ["mark", "watch"])
def test_work_in_another_cache_s_epoch_that_was_told_of(standin, gpu_pool, streams, told):
    first, second = make(gpu_pool, pages=2), make(gpu_pool, pages=2)
    step(first, streams[0], (first.open(), 1))
    closed = second.open()
    step(second, streams[1], (closed, 2 * TOKENS))
    kernel = Kernel(standin, streams[0], closed)
    getattr(gpu_pool._core, told)(streams[0])
    closed.close(streams[1])
    second.end(streams[1])
    assert gpu_pool._core.trim(ALL) == 0
    first.end(streams[0])
    assert gpu_pool._core.trim(ALL) == 2 * PAGE
    assert kernel.over
    first.close()
    second.close()


@pytest.mark.parametrize("before", [True, False])
def test_a_marked_copy_on_a_stream_that_the_cache_steps_for_others(standin, gpu_pool, streams, before):
    """Whether the copy comes before the cache first steps that stream, or in its epoch."""
    cache = make(gpu_pool, pages=2)
    closed, beside = cache.open(), cache.open()
    step(cache, streams[0], (closed, 2 * TOKENS))
    if not before:
        step(cache, streams[1], (beside, 1))
    kernel = Kernel(standin, streams[1], closed)
    gpu_pool._core.mark(streams[1])
    if before:
        step(cache, streams[1], (beside, 1))
    closed.close(streams[0])
    cache.end(streams[0])
    assert gpu_pool._core.trim(ALL) == (2 * PAGE if before else 0)
    cache.end(streams[1])
    assert gpu_pool._core.trim(ALL) == (0 if before else 2 * PAGE)
    assert kernel.over
    cache.close()


def test_a_slot_that_was_opened_and_closed_without_a_step_has_its_old_readers(standin, gpu_pool, streams):
    cache = make(gpu_pool, slots=1)
    old, kernel = busy(standin, cache, streams[0], 3)
    old.close(streams[0])
    new = cache.open(3 * TOKENS, stream=streams[1])
    new.announce(5 * TOKENS)
    new.close(streams[1])
    cache.end(streams[1])
    assert gpu_pool._core.trim(ALL) == 0
    assert not kernel.over
    cache.end(streams[0])
    assert gpu_pool._core.trim(ALL) == 3 * PAGE
    assert kernel.over
    cache.close()


def test_what_was_truncated_waits_for_the_epochs_of_its_sequence(standin, gpu_pool, streams):
    first, second = make(gpu_pool, pages=2), make(gpu_pool, pages=2)
    _, kernel = busy(standin, first, streams[0], 2)
    cut, other = busy(standin, second, streams[1], 2)
    cut.truncate(TOKENS)
    assert gpu_pool._core.trim(ALL) == 0
    second.end(streams[1])
    assert gpu_pool._core.trim(ALL) == PAGE
    assert other.over
    assert not kernel.over
    first.close()
    second.close()
