"""What is done with libcuda while its calls fail: together the scenarios reach every call of the driver."""

import contextlib
import os
import tempfile
from array import array
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import cuda_standin
from core_pool import settle
from cuda_calls import Cuda

from vmm import Error, _core

PAGE = 65536
UNKNOWN = 999


@dataclass(frozen=True)
class Scenario:
    """``act(pool, state)``, with the state that ``prepare(pool, standin)`` gave while nothing failed."""

    act: Callable[[Any, Any], object]
    prepare: Callable[[Any, Any], object] = lambda pool, standin: None
    ends_drivers: bool = False  # a driver that ends where libcuda refuses its undoing must leave things


def open_pool(**options):
    options = {"arena_bytes": 1 << 30, "pager_thread": False, **options}
    return _core.Pool(16 * PAGE, cuda_device=0, cuda_host_accessible=True, **options)


def reserve(pool, pages):
    return pool.reserve(page_bytes=PAGE, extent_bytes=pages * PAGE)


def _rows(pool, tokens=64):
    """64 tokens of half a page in each of two rows."""
    return _core.Rows(
        pool, rows=2, tokens=tokens, record_bytes=PAGE // 2, page_bytes=PAGE, type_code=1, type_bits=8
    )


def _insist(work):
    for _ in range(5):
        try:
            return work()
        except Error:
            continue
    raise AssertionError("fails for good")


def _make_and_end(pool, _):
    open_pool().close()


def _start_and_stop_a_pager(pool, _):
    open_pool(pager_thread=True).close()


def _grow_and_release(pool, _):
    rows = _rows(pool)
    for end in (1, 6, 20):
        rows.touch(0, (end * PAGE // 2,), (1,))
    rows.release(3, 20)
    settle(pool)
    rows.touch(0, (12 * PAGE // 2,), (1,))


def _copy_on_a_stream(pool, _):
    rows = _rows(pool)
    rows.reserve(8)
    stream = pool.create_stream()
    base = reserve(pool, 4)
    base.map([(0, 4)])
    try:
        pool.copy(base.address, base.address + 2 * PAGE, PAGE, stream)
        pool.step(stream)
        base.retire([(0, 2)])
        pool.end(stream)
        pool.poll()
        pool.synchronize(stream)
    finally:
        _insist(lambda: pool.destroy_stream(stream))
    settle(pool)


def _copy_and_release(pool, stream):
    """The stream outlives the failure: what was queued all the same must be waited for."""
    lease = reserve(pool, 4)
    lease.map([(0, 4)])
    try:
        pool.copy(lease.address, lease.address + 2 * PAGE, PAGE, stream)
    finally:
        lease.retire([(0, 4)])


def _watch(pool, stream):
    """What is on a watched stream is marked by the poll after somebody waits for it."""
    lease = reserve(pool, 2)
    lease.map([(0, 2)])
    pool.watch(stream)
    lease.retire([(0, 2)])
    settle(pool)


def _make_room(pool, _):
    old = reserve(pool, 12)
    old.map([(0, 12)])
    del old
    new = reserve(pool, 8)
    new.map([(0, 3), (5, 3)])  # in two stretches
    pool.trim(1 << 40)


def _step(cache, slot, length):
    numbers = array("i", [slot, length])
    address = numbers.buffer_info()[0]
    cache.step(address, 1, address + numbers.itemsize, 1)


def _serve(pool, _):
    """Sequences of four tokens a page: one grows, goes back, ends, and is followed by another."""
    lease = pool.reserve(page_bytes=PAGE, extent_bytes=8 * PAGE, extents=2)
    cache = _core.KvCache(pool, [(lease, 1, PAGE // 4, 0)], 2)
    slot = cache.open(4, 4)
    _step(cache, slot, 4)
    settle(pool)
    _step(cache, slot, 9)
    cache.truncate(slot, 2)
    pool.trim(2 * PAGE)
    _step(cache, slot, 12)
    cache.close(slot)
    _step(cache, cache.open(20, 0), 20)


def _fork(pool, _):
    """They share pages, are cut back into what they share, and end."""
    lease = pool.reserve(page_bytes=PAGE, extent_bytes=4 * PAGE, extents=3)
    cache = _core.KvCache(pool, [(lease, 1, PAGE // 4, 0)], 3)
    first = cache.open(10, 10)
    _step(cache, first, 10)
    [second] = cache.fork(first, 1)
    _step(cache, second, 14)
    [third] = cache.fork(second, 1)
    cache.truncate(second, 6)
    _step(cache, second, 9)
    cache.close(first)
    cache.end()
    settle(pool)
    pool.trim(2 * PAGE)
    cache.truncate(third, 3)
    _step(cache, third, 12)
    cache.close(third)


def _swap(pool, folder):
    """Two pages go to the host's memory and to a file, and come back."""
    lease = reserve(pool, 2)
    lease.map([(0, 2)])
    host = partial(_core.TierStore.host, capacity=2 * PAGE, slot=PAGE, pool=pool)
    file = partial(_core.TierStore.file, folder, capacity=2 * PAGE, slot=PAGE, threads=1, pool=pool)
    try:
        for make in (host, file):
            store = make()
            slots = store.take(2)
            store.write(slots, lease.address)
            store.read(slots, lease.address)
            store.close()
    finally:
        lease.retire([(0, 2)])
    settle(pool)


def _map_after_a_failure(pool, _):
    lease = reserve(pool, 8)
    _insist(lambda: lease.map([(0, 8)]))


def _stuck(pool, standin):
    """A lease of two pages, in which one is mapped although mapping it failed: undoing it failed, too."""
    lease = reserve(pool, 2)
    lease.map([(0, 2)])
    lease.retire([(0, 2)])
    settle(pool)
    for n in range(1, 20):
        standin.fail_at(n, UNKNOWN, 2)
        with contextlib.suppress(Error):
            lease.map([(0, 2)])
        standin.fail_at(0)
        if standin.last_failed.startswith("cuMemUnmap"):
            assert lease.mapped_bytes == 0
            return lease
    raise AssertionError("undoing a map was not made to fail")


def _map_over_what_is_stuck(pool, lease):
    lease.map([(0, 2)])


def _end_with_something_stuck(pool, pools):
    pools.clear()


def _pool_with_something_stuck(pool, standin):
    other = open_pool()
    _stuck(other, standin)
    other.close()
    return [other]


def _end_with_work_under_way(pool, _):
    other = open_pool()
    try:
        stream = other.create_stream()
        other.step(stream)
        other.end(stream)
    finally:
        other.close()


def _share(pool, _):
    """With another GPU, network cards and another process."""
    other = open_pool(peers=(1,), rdma=True, shareable=True)
    lease = reserve(other, 2)
    lease.map([(0, 2)])
    try:
        os.close(other.export_page(lease.address)[0])
    finally:
        lease.retire([(0, 2)])
        del lease
        other.close()


def _end_without_a_pool(pool, standin):
    driver = _core.CudaDriver(0)
    try:
        driver.record(driver.create_stream())
    finally:
        standin.sync_all()  # or else it leaves the context to what is on the stream


def _drop_a_stream(pool, standin):
    """With work on it that nobody has marked."""
    stream = pool.create_stream()
    lease = reserve(pool, 2)
    try:
        lease.map([(0, 2)])
        with cuda_standin.own_calls():
            standin.launch(stream, reads=[(lease.address, PAGE)])
    finally:
        pool.end_stream(stream)
    lease.retire([(0, 2)])
    settle(pool)
    pool.destroy_stream(pool.create_stream())


def _drop_blocks_that_anybody_may_read(pool, standin):
    """The work is on a stream of which the pool has not been told."""
    made = _core.Range(pool, size=8 * PAGE, page_bytes=PAGE, zeroed=False)
    blocks = made.blocks([0], PAGE // 2, 16)
    stream = pool.create_stream()
    try:
        blocks.keep([0, 1, 2, 3])
        with cuda_standin.own_calls():
            standin.launch(stream, reads=[(made.lease.address, 2 * PAGE)])
        blocks.drop([0, 1, 2, 3], unmap=True, whole_device=True)
        settle(pool)
    finally:
        _insist(lambda: pool.destroy_stream(stream))
    with contextlib.suppress(Error):
        blocks.announce([4, 5])
    settle(pool)
    made.end()


class _Green:
    """A stream of a green context."""

    def __init__(self, pool, standin):
        self.cuda = Cuda(standin.library)
        self.handle = standin.green_stream(0)

    def __del__(self):
        self.cuda.do("cuStreamDestroy", self.handle)


def _copy_on_a_green_stream(pool, green):
    _copy_and_release(pool, green.handle)
    settle(pool)


def _with_a_context(pool, standin):
    """As after torch's first call."""
    cuda = Cuda(standin.library)
    context = cuda.get_number("cuDevicePrimaryCtxRetain", 0)
    cuda.do("cuCtxSetCurrent", context)
    cuda.do("cuDevicePrimaryCtxRelease", 0)  # the pool holds it


def _ask_about_the_device(pool, _):
    context = _core.CudaContext(0)
    assert context.free_bytes() > 0
    assert _core.cuda_free_bytes(0) > 0
    del context
    assert _core.cuda_free_bytes(0) > 0
    assert _core.cuda_free_bytes(1) > 0  # of which nobody has a context
    assert _core.cuda_name(0)


SCENARIOS = {
    "make and end": Scenario(_make_and_end, ends_drivers=True),
    "start and stop a pager": Scenario(_start_and_stop_a_pager, ends_drivers=True),
    "grow and release": Scenario(_grow_and_release),
    "drop blocks that anybody may read": Scenario(
        _drop_blocks_that_anybody_may_read, lambda pool, standin: standin
    ),
    "copy on a stream": Scenario(_copy_on_a_stream),
    "copy on a stream, with a context": Scenario(_copy_on_a_stream, _with_a_context),
    "copy and release": Scenario(_copy_and_release, lambda pool, _: pool.create_stream()),
    "watch": Scenario(_watch, lambda pool, _: pool.create_stream()),
    "make room": Scenario(_make_room),
    "serve": Scenario(_serve),
    "fork": Scenario(_fork),
    "swap": Scenario(_swap, lambda pool, _: tempfile.gettempdir(), ends_drivers=True),
    "map after a failure": Scenario(_map_after_a_failure),
    "map over what is stuck": Scenario(_map_over_what_is_stuck, _stuck),
    "end with something stuck": Scenario(_end_with_something_stuck, _pool_with_something_stuck, True),
    "end with work under way": Scenario(_end_with_work_under_way, ends_drivers=True),
    "share": Scenario(_share, ends_drivers=True),
    "drop a stream": Scenario(_drop_a_stream, lambda pool, standin: standin),
    "copy on a green stream": Scenario(_copy_on_a_green_stream, _Green),
    "end without a pool": Scenario(_end_without_a_pool, lambda pool, standin: standin, True),
    "ask about the device": Scenario(_ask_about_the_device, ends_drivers=True),
}
