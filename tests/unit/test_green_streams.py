"""Streams of a green context: of another context than ours, but of the same device."""

import ctypes

import pytest
from core_pool import settle
from cuda_calls import SUCCESS

from vmm import InvalidArgument, _core

PAGE = 65536


@pytest.fixture
def green(standin, cuda):
    stream = standin.green_stream(0)
    yield stream
    cuda.do("cuStreamDestroy", stream)


@pytest.fixture
def pool(green):  # which it may watch
    made = _core.Pool(
        16 * PAGE, arena_bytes=1 << 30, pager_thread=False, cuda_device=0, cuda_host_accessible=True
    )
    yield made
    made.check()
    made.close()
    assert made.stats()["created_bytes"] == 0


def test_copies_and_zeroing_are_done_there(pool, green):
    lease = pool.reserve(page_bytes=PAGE, extent_bytes=4 * PAGE)
    lease.map([(0, 4)])
    ctypes.memset(lease.address, 7, PAGE)
    pool.copy(lease.address + PAGE, lease.address, PAGE, green)
    pool.synchronize(green)
    assert ctypes.string_at(lease.address + PAGE, PAGE) == b"\7" * PAGE
    driver = _core.CudaDriver(0, host_accessible=True)
    base = driver.reserve(PAGE, PAGE)
    page = driver.create(PAGE, 0)
    driver.map([(base, page, PAGE)])
    driver.set_access([(base, page, PAGE)])
    ctypes.memset(base, 7, PAGE)
    driver.zero(base, PAGE, green)
    event = driver.record(green)
    driver.wait(event)
    driver.destroy_event(event)
    assert ctypes.string_at(base, PAGE) == bytes(PAGE)
    driver.unmap([(base, page, PAGE)])
    driver.release(page)
    driver.free_reservation(base, PAGE)


@pytest.mark.parametrize("how", ["mark", "watch", "step"])
def test_what_is_released_waits_for_it(standin, pool, green, how):
    lease = pool.reserve(page_bytes=PAGE, extent_bytes=4 * PAGE)
    lease.map([(0, 4)])
    over = []
    if how == "watch":
        pool.watch(green)
    if how == "step":
        pool.step(green)
    for _ in range(200):
        standin.launch(green)
    assert standin.launch(green, lambda: over.append(1), reads=[(lease.address, PAGE)]) == SUCCESS
    if how == "mark":
        pool.mark(green)
    lease.retire([(0, 4)])
    if how == "step":
        pool.end(green)
    for _ in range(1000):
        pool.poll()
        if not pool.stats()["retirements_waiting"]:
            break
    assert over
    settle(pool)
    assert pool.events_in_use() == 0


def test_its_events_are_no_others(standin, pool, green):
    """An event of one context cannot be recorded on a stream of the other."""
    own = pool.create_stream()
    for _ in range(3):
        for stream in (green, own, 0):
            pool.mark(stream)
    for _ in range(100):
        pool.poll()
    assert pool.events_in_use() == 0
    pool.destroy_stream(own)


def test_one_of_another_device_is_refused(standin, cuda, pool):
    other = cuda.get_number("cuDevicePrimaryCtxRetain", 1)
    stream = standin.green_stream(1)
    for call in (pool.mark, pool.step, pool.end, pool.watch, pool.synchronize):
        with pytest.raises(InvalidArgument, match="stream: of another device than cuda:0"):
            call(stream)
    lease = pool.reserve(page_bytes=PAGE, extent_bytes=4 * PAGE)
    lease.map([(0, 4)])
    with pytest.raises(InvalidArgument, match="stream: of another device than cuda:0"):
        pool.copy(lease.address, lease.address + PAGE, PAGE, stream)
    del lease
    assert pool.trim(1 << 40) == 4 * PAGE
    cuda.do("cuStreamDestroy", stream)
    cuda.do("cuDevicePrimaryCtxRelease", 1)
    assert other
