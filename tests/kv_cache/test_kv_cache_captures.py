"""Graph captures that begin, and end, just while an event is recorded; streams by several names, and handles
that CUDA gives out again."""

import ctypes
from types import SimpleNamespace

import pytest
from core_pool import settle
from cuda_calls import GLOBAL, SUCCESS
from late_kernels import PAGE, TOKENS, Kernel, busy, make, step

import vmm.stream
from vmm import InvalidArgument
from vmm.stream import torch_stream


def begin(cuda, stream):
    cuda.do("cuStreamBeginCapture", stream, GLOBAL)


def end(cuda, stream):
    graph = ctypes.c_void_p()
    assert cuda.cuStreamEndCapture(stream, ctypes.byref(graph)) == SUCCESS  # nobody broke it
    cuda.do("cuGraphDestroy", graph)


@pytest.fixture
def torch_late(monkeypatch, gpu_pool):
    """torch's work outlasts its calls; its current stream is the one in the list."""
    current = [0]
    monkeypatch.setattr(vmm.stream, "_current_stream", lambda ordinal: current[0])
    gpu_pool._runs_late = True
    return current


def test_a_capture_begins_while_a_step_records(standin, cuda, gpu_pool, streams):
    cache = make(gpu_pool)
    old, kernel = busy(standin, cache, streams[0], 3)
    standin.before("cuEventRecord", lambda: begin(cuda, streams[0]))
    with pytest.raises(InvalidArgument, match="captured"):
        cache.end(streams[0])
    for _ in range(20):
        gpu_pool._core.poll()
    end(cuda, streams[0])
    old.close()
    cache.end(streams[0])
    assert gpu_pool._core.trim(1 << 40) >= 3 * PAGE
    assert kernel.over
    cache.close()


@pytest.mark.parametrize("open_again", [False, True])
def test_an_event_that_got_into_a_capture_is_dropped(standin, cuda, gpu_pool, streams, open_again):
    """It began and ended between two calls, so that nobody saw it: the event will never complete."""
    cache = make(gpu_pool)
    old, kernel = busy(standin, cache, streams[0], 3)
    standin.before("cuEventRecord", lambda: begin(cuda, streams[0]))
    standin.before("cuStreamIsCapturing", lambda: end(cuda, streams[0]))
    old.close()
    (gpu_pool._core.step if open_again else cache.end)(streams[0])
    for _ in range(20):
        gpu_pool._core.poll()
    gpu_pool._core.end(streams[0])
    assert gpu_pool._core.trim(1 << 40) >= 3 * PAGE
    assert kernel.over
    cache.close()


def test_an_earlier_event_does_not_cover_what_is_dropped(standin, cuda, gpu_pool, streams):
    """What came onto the stream since the last step is marked anew, although that step's event is not over."""
    cache = make(gpu_pool)
    old, kernel = busy(standin, cache, streams[0], 3)
    gpu_pool._core.step(streams[0])
    old.close()
    standin.before("cuEventRecord", lambda: begin(cuda, streams[0]))
    standin.before("cuStreamIsCapturing", lambda: end(cuda, streams[0]))
    gpu_pool._core.end(streams[0])
    assert gpu_pool._core.trim(1 << 40) >= 3 * PAGE
    assert kernel.over
    cache.close()


def test_a_capture_begins_while_the_pager_records(standin, cuda, gpu_pool, streams):
    pool = gpu_pool._core
    pool.watch(streams[0])
    lease = pool.reserve(page_bytes=PAGE, extent_bytes=4 * PAGE)
    lease.map([(0, 4)])
    lease.retire([(0, 4)])
    standin.before("cuEventRecord", lambda: begin(cuda, streams[0]))
    for _ in range(20):
        pool.poll()
    assert pool.stats()["retirements_waiting"] == 1
    end(cuda, streams[0])
    settle(pool)
    assert pool.stats()["retirements_waiting"] == 0


def test_the_default_stream_has_one_name(standin, gpu_pool, torch_late):
    """None, 0, 1 and torch's own object: an epoch that one opens, another closes."""
    names = [None, 0, 1, SimpleNamespace(cuda_stream=0), SimpleNamespace(cuda_stream=1)]
    cache = make(gpu_pool, slots=1)
    for first in names:
        for second in names:
            old = cache.open(0, stream=first)
            step(cache, first, (old, TOKENS))
            old.close(second)
            new = cache.open(0, stream=second)
            step(cache, second, (new, 2 * TOKENS))  # "closed in an epoch of another stream"
            new.close()
            cache.end(first)
    cache.close()


def test_a_handle_that_is_given_out_again_is_watched_again(standin, gpu_pool, torch_late):
    pool = gpu_pool._core
    standin.set(reuse_handles=1)
    try:
        torch_late[0] = first = pool.create_stream()
        assert torch_stream(gpu_pool) == first
        torch_late[0] = 0
        pool.destroy_stream(first)
        torch_late[0] = second = pool.create_stream()
        assert second == first  # as the real driver does
        cache = make(gpu_pool)
        sequence = cache.open()
        step(cache, None, (sequence, 3 * TOKENS))
        cache.end()
        kernel = Kernel(standin, second, sequence)  # after the epoch, unannounced, as torch does
        sequence.close()
        cache.close()
        pool.trim(1 << 40)
        assert kernel.over
        torch_late[0] = 0
        pool.destroy_stream(second)
    finally:
        standin.set(reuse_handles=0)


def test_the_stream_of_each_thread_is_refused(gpu_pool, torch_late):
    pool = gpu_pool._core
    for call in (pool.step, pool.end, pool.mark, pool.watch):
        with pytest.raises(InvalidArgument, match="in every thread"):
            call(2)
    pool.poll()
    cache = make(gpu_pool)
    with pytest.raises(InvalidArgument, match="in every thread"):
        step(cache, SimpleNamespace(cuda_stream=2), (cache.open(), 1))
    cache.close()
