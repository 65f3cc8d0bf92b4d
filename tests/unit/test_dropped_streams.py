"""Streams that are dropped, and streams that never end: nobody is held up, and nothing is reused early."""

import time

import cuda_standin
import pytest
import torch
from core_pool import settle
from cuda_calls import SUCCESS

import vmm
from child import run_child
from vmm import Closed, InvalidArgument, Pool, Stream, _core

PAGE = 65536

HOST = f"""
pool = vmm.Pool("64MiB")
stream = vmm.Stream(pool)
t = pool._core.reserve(page_bytes={PAGE}, extent_bytes=1 << 25, extents=1)
t.map([(0, (1 << 25) // {PAGE})])
for _ in range(100_000):  # minutes
    pool._core.copy(t.address, t.address + (1 << 24), 1 << 24, stream.handle)
"""
STANDIN = f"""
sys.path[:0] = {[str(cuda_standin.HERE.parent), str(cuda_standin.HERE)]!r}
import cuda_standin
standin = cuda_standin.configured(granularity={PAGE})
cuda_standin.shown_as_cpu()
pool = vmm.Pool("4MiB")
stream = vmm.Stream(pool)
t = pool._core.reserve(page_bytes={PAGE}, extent_bytes={4 * PAGE}, extents=1)
t.map([(0, 4)])
with cuda_standin.own_calls():
    standin.set(hang=1)
    assert standin.launch(stream.handle, reads=[(t.address, {PAGE})]) == 0
pool._core.mark(stream.handle)
"""
BEGINNING = """
import gc, os, sys, threading, time
import vmm
from vmm import open_pools

open_pools._EXIT_PATIENCE_S = 0.2
"""

ENDINGS = {  # and how many are told of it: a pool that is dropped tells nobody
    "at exit": ("", 1),
    "dropped": ("del stream", 1),
    "dropped with all else": ("del t, stream, pool; gc.collect()", 0),
    "in a cycle": ("pool.itself = pool; stream.itself = stream; del t, stream, pool; gc.collect()", 0),
    "in a module": ("vmm.keep = stream, pool, t; del stream, pool, t", 1),
    "closed with patience": ("pool._core.close(patience_s=0.1)", 1),
    "closed with patience and dropped": ("pool._core.close(patience_s=0.1); del t, stream, pool", 0),
    "closed in a thread": ("threading.Thread(target=stream.close, daemon=True).start(); time.sleep(0.1)", 1),
    "after a fork": (
        """
child = os.fork()
if child == 0:
    del stream, t, pool
    gc.collect()
    sys.exit(7)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
""",
        1,
    ),
}


@pytest.mark.parametrize("ending", ENDINGS)
@pytest.mark.parametrize("device", ["host", "stand-in"])
def test_a_stream_that_never_ends_does_not_keep_the_process(device, ending):
    cuda_standin.library()
    code, told = ENDINGS[ending]
    result = run_child(BEGINNING + (HOST if device == "host" else STANDIN) + code)
    assert result.returncode == 0, result.stderr
    said = [line for line in result.stderr.splitlines() if "did not end in time" in line]
    assert len(said) == told, result.stderr
    assert all("1 stream" in line for line in said)


def test_dropping_a_stream_waits_for_nobody_and_its_fences_stay(standin):
    pool = Pool._over(_core.Pool(8 * PAGE, pager_thread=False, cuda_device=0, cuda_host_accessible=True))
    with cuda_standin.own_calls():
        stream = Stream(pool)
        handle = stream.handle
        lease = pool._core.reserve(page_bytes=PAGE, extent_bytes=4 * PAGE, extents=1)
        lease.map([(0, 4)])
        over = []
        standin.set(hang=1)
        assert standin.launch(handle, lambda: over.append(1), reads=[(lease.address, PAGE)]) == SUCCESS
        del stream  # with work on it that nobody has marked
        lease.retire([(0, 1)])
        for _ in range(20):
            pool._core.poll()
        assert handle in streams(standin)
        assert pool.stats().retirements_waiting == 1
        standin.set(hang=0)
        settle(pool._core)
        assert over
        assert handle not in streams(standin)
        lease.retire([(1, 3)])
        settle(pool._core)
        assert lease.mapped_bytes == 0
        assert pool._core.events_in_use() == 0
        pool.close()


@pytest.mark.parametrize("looks", ["poll", "create_stream", "close"])
def test_a_dropped_stream_is_destroyed_when_it_is_over(standin, looks):
    pool = Pool._over(_core.Pool(8 * PAGE, pager_thread=False, cuda_device=0, cuda_host_accessible=True))
    before = streams(standin)
    dropped = Stream(pool).handle
    assert dropped in streams(standin)
    for _ in range(50):  # events come late
        made = getattr(pool._core, looks)()
        if looks == "create_stream":
            pool._core.end_stream(made)
    assert dropped not in streams(standin)
    pool.close()
    assert streams(standin) <= before


def test_a_dropped_stream_of_an_idle_pool_is_destroyed_by_the_pager(standin):
    pool = Pool._over(
        _core.Pool(8 * PAGE, idle_ns=10_000_000, cuda_device=0, cuda_host_accessible=True)  # with a thread
    )
    dropped = Stream(pool).handle
    deadline = time.monotonic() + 30
    while dropped in streams(standin) and time.monotonic() < deadline:
        time.sleep(0.005)
    assert dropped not in streams(standin)
    pool.close()


def test_a_dropped_stream_with_an_open_epoch_ends_it(standin):
    pool = Pool._over(_core.Pool(8 * PAGE, pager_thread=False, cuda_device=0, cuda_host_accessible=True))
    lease = pool._core.reserve(page_bytes=PAGE, extent_bytes=4 * PAGE, extents=1)
    lease.map([(0, 4)])
    stream = Stream(pool)
    pool._core.step(stream.handle)
    lease.retire([(0, 4)])
    for _ in range(20):
        pool._core.poll()
    assert pool.stats().retirements_waiting == 1
    del stream
    settle(pool._core)
    assert pool.stats().retirements_waiting == 0
    pool.close()


def test_a_closed_pool_has_ended_its_streams():
    pool = vmm.Pool("64MiB")
    t = vmm.KVTensor(1, 2**20, pool=pool)
    t.append(torch.ones(1, 2**20))
    stream = Stream(pool)
    stream.copy(t[0, 2**19 :], t[0, : 2**19])
    pool.close()
    with pytest.raises(Closed, match="pool"):
        _ = stream.handle
    with pytest.raises(Closed):
        stream.copy(t[0, 2**19 :], t[0, : 2**19])
    with pytest.raises(Closed):
        Stream(pool)
    with pytest.raises(Closed):
        pool._core.create_stream()
    t.close(stream=stream)  # what was on it is over
    stream.close()


def test_what_is_no_stream_of_the_pool_cannot_be_destroyed():
    pool = _core.Pool(8 * PAGE, pager_thread=False)
    stream = pool.create_stream()
    pool.destroy_stream(stream)
    for none in (0, stream, 12345):
        with pytest.raises(InvalidArgument, match="stream"):
            pool.destroy_stream(none)
    pool.close()


def streams(standin):
    return {stream["id"] for stream in standin.live()["streams"]}
