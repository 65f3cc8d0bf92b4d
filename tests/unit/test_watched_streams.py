"""Streams that torch puts work on without saying so: what is released waits for them by itself.

On the stand-in, whose "kernels" declare what they read: it reports memory that is taken away meanwhile.
"""

import ctypes
from types import SimpleNamespace

import pytest
from core_pool import settle
from cuda_calls import GLOBAL, SUCCESS

from vmm import InvalidArgument, OutOfPages, _core

PAGE = 65536
READS = 4096


@pytest.fixture
def pool(cuda):
    made = _core.Pool(
        8 * PAGE, arena_bytes=1 << 30, pager_thread=False, cuda_device=0, cuda_host_accessible=True
    )
    yield made
    made.check()
    made.close()


class Work:
    """A kernel on a stream, which reads the first page of a lease, after so many that the stand-in will not
    have come to it before it is waited for."""

    def __init__(self, standin, stream, lease):
        self.over = False
        for _ in range(500):
            standin.launch(stream)
        assert standin.launch(stream, self._run, reads=[(lease.address, READS)]) == SUCCESS

    def _run(self):
        self.over = True


def reserve(pool, pages=4, **options):
    return pool.reserve(page_bytes=PAGE, extent_bytes=pages * PAGE, **options)


@pytest.fixture
def busy(standin, pool):
    """A watched stream with work on it that reads a mapped lease."""
    stream = pool.create_stream()
    pool.watch(stream)
    lease = reserve(pool)
    lease.map([(0, 4)])
    made = SimpleNamespace(pool=pool, stream=stream, lease=lease, work=Work(standin, stream, lease))
    del lease
    yield made
    made.lease = None
    standin.sync_all()
    settle(pool)
    pool.destroy_stream(stream)


def test_what_is_retired_waits(standin, busy):
    pool = busy.pool
    busy.lease.retire([(0, 4)])
    for _ in range(1000):
        pool.poll()
        if busy.lease.mapped_bytes == 0 and pool.stats()["free_bytes"] == 4 * PAGE:
            break
    assert busy.work.over
    assert pool.stats()["retirements_waiting"] == 0


def test_surplus_waits(busy):
    """Room is made of pages that nobody keeps, once the work on them is over."""
    pool = busy.pool
    busy.lease.unkeep([(0, 4)])
    other = reserve(pool, 7)
    other.map([(0, 7)])
    assert busy.work.over
    assert busy.lease.mapped_bytes == PAGE


def test_what_ends_is_adopted_later_or_on_the_same_stream(standin, busy):
    pool = busy.pool
    address = busy.lease.address
    busy.lease = None
    made = pool.stats()["reservations_made"]
    elsewhere = reserve(pool)  # for whoever: it may start at once
    assert elsewhere.address != address
    another = reserve(pool, stream=0)
    assert another.address != address
    on_the_stream = reserve(pool, stream=busy.stream)
    assert on_the_stream.address == address
    assert on_the_stream.mapped_bytes == 4 * PAGE
    assert not busy.work.over
    assert pool.stats()["reservations_made"] == made + 2
    # What it does not use of the old pages may still be read.
    elsewhere.map([(0, 4)])
    last = reserve(pool, 2)
    last.map([(0, 2)])
    assert busy.work.over


def test_trim_waits(busy):
    """trim() waits for the work: a closed pool has nobody else who would."""
    pool = busy.pool
    busy.lease = None
    assert pool.trim(1 << 40) == 4 * PAGE
    assert busy.work.over


def test_an_open_epoch_covers_a_watched_stream(standin, busy):
    pool = busy.pool
    pool.step(busy.stream)
    busy.lease.retire([(0, 1)])
    standin.sync_all()
    for _ in range(10):
        pool.poll()
    assert busy.work.over
    assert pool.stats()["retirements_waiting"] == 1
    pool.end(busy.stream)
    settle(pool)
    assert pool.stats()["retirements_waiting"] == 0


def test_a_capture_goes_on_and_is_waited_for(standin, cuda, busy):
    pool = busy.pool
    cuda.do("cuStreamBeginCapture", busy.stream, GLOBAL)
    pool.watch(busy.stream)
    busy.lease.retire([(0, 1)])
    busy.lease.unkeep([(1, 1)])
    for _ in range(20):
        pool.poll()
    assert pool.stats()["retirements_waiting"] == 1
    # Only this thread can end the capture, so it must not be made to wait for that.
    assert pool.trim(1 << 40) == 0
    other = reserve(pool, 5)
    with pytest.raises(OutOfPages):
        other.map([(0, 5)])
    graph = ctypes.c_void_p()
    assert cuda.cuStreamEndCapture(busy.stream, ctypes.byref(graph)) == SUCCESS
    cuda.do("cuGraphDestroy", graph)
    standin.sync_all()
    settle(pool)
    assert pool.stats()["retirements_waiting"] == 0
    other.map([(0, 5)])


def test_trim_looks_again_when_a_capture_has_ended(cuda, busy):
    cuda.do("cuStreamBeginCapture", busy.stream, GLOBAL)
    busy.lease.retire([(0, 1)])
    assert busy.pool.trim(1 << 40) == 0
    graph = ctypes.c_void_p()
    cuda.do("cuStreamEndCapture", busy.stream, ctypes.byref(graph))
    cuda.do("cuGraphDestroy", graph)
    assert busy.pool.trim(1 << 40) == PAGE


def test_a_stream_of_the_host():
    """What ended its stream behind our back has ended its work."""
    pool = _core.Pool(8 * PAGE, arena_bytes=1 << 30, pager_thread=False)
    with pytest.raises(InvalidArgument, match="stream"):
        pool.watch(12345)
    stream = pool.create_stream()
    pool.watch(stream)
    lease = reserve(pool)
    lease.map([(0, 4)])
    lease.retire([(0, 2)])
    pool.destroy_stream(stream)
    settle(pool)
    lease.retire([(2, 2)])
    settle(pool)
    assert pool.stats()["retirements_waiting"] == 0
    pool.close()
