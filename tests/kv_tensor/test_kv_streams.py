"""stream=: what is released waits for the work that may touch it."""

import time

import pytest
import torch

from vmm import Closed, InvalidArgument, KVTensor, Pool, Stream, _core
from vmm.testing import settle

MIB = 2**20
PART = 64 * MIB // 4  # elements of a long copy


@pytest.fixture(scope="module")
def big():
    with Pool("256MiB", lookahead_pages=0) as pool:
        source, target = (KVTensor(1, PART, pool=pool, page_bytes=2 * MIB) for _ in range(2))
        source[0, :PART] = 1.0
        target[0, :PART] = 0.0
        yield pool, source[0, :PART], target[0, :PART]
        pool.check()


@pytest.fixture
def busy(big):
    """A pool, and a stream on it with a quarter of a second of work ahead."""
    pool, source, target = big
    with Stream(pool) as stream:
        for _ in range(30):
            stream.copy(target, source)
        yield pool, stream
    settled(pool)


def settled(pool):
    """Waits until the pager has also seen that the work is over, which may be late on a busy machine."""
    deadline = time.monotonic() + 60
    while pool.stats().retirements_waiting and time.monotonic() < deadline:
        time.sleep(0.001)
    settle(pool, still_seconds=0.01)
    assert pool.stats().retirements_waiting == 0


def filled(pool):
    t = KVTensor(1, 1000, 16, pool=pool, page_bytes=4096)
    t.append(torch.ones(1, 640, 16))
    return t


RELEASES = {
    "release": lambda t, stream: t.release(0, 1000, stream=stream),
    "truncate": lambda t, stream: t.truncate(0, stream=stream),
    "close": lambda t, stream: t.close(stream=stream),
}


@pytest.mark.parametrize("name", RELEASES)
@pytest.mark.parametrize("handle", [False, True], ids=["stream", "handle"])
def test_what_is_released_waits_for_the_stream(busy, name, handle):
    pool, stream = busy
    t = filled(pool)
    settle(pool, still_seconds=0.01)  # a GPU's pager creates a reserve
    before = pool.stats()
    RELEASES[name](t, stream.handle if handle else stream)
    assert pool.stats().retirements_waiting > 0
    assert pool._core.stats()["created_bytes"] == before.created_bytes
    stream.synchronize()
    settled(pool)
    assert pool.stats().mapped_bytes == before.mapped_bytes - 640 * 64


def test_a_copy_fences_without_being_named(busy):
    pool, stream = busy
    t = filled(pool)
    t[0, :640] = 3.0
    stream.copy(t[0, 320:640], t[0, :320].add_(1))
    t.truncate(0)  # the slices the copy was given are gone
    assert pool.stats().retirements_waiting == 1
    t.close()
    stream.synchronize()
    settled(pool)


def test_a_tensor_that_dies_under_a_copy(busy):
    pool, stream = busy
    t, plain = filled(pool), torch.zeros(320, 16)
    with pytest.raises(InvalidArgument, match=r"address|to"):
        stream.copy(plain, t[0, :320])
    stream.copy(t[0, 320:640], t[0, :320])
    del t
    assert pool.stats().retirements_waiting == 1
    stream.synchronize()


def test_memory_released_under_a_copy_is_written_after_it(busy):
    """Mapping it again waits for the copy, and the pages read as zeros."""
    pool, stream = busy
    t = filled(pool)
    stream.copy(t[0, 320:640], t[0, :320])
    t.truncate(0)
    assert t[0, :640].eq(0).all()
    t.append(torch.full((1, 640, 16), 5.0))
    stream.synchronize()
    assert t[0, :640].eq(5).all()


def test_copies_are_in_order_and_beside_the_caller(busy):
    pool, stream = busy
    t = filled(pool)
    t[0, :3] = torch.tensor([[1.0], [2.0], [3.0]]).expand(3, 16)
    stream.copy(t[0, 1:2], t[0, 0:1])
    stream.copy(t[0, 2:3], t[0, 1:2])
    assert t[0, 2, 0] == 3  # there is work before it
    stream.synchronize()
    assert t[0, :3].eq(1).all()


@pytest.mark.host_only
@pytest.mark.parametrize("name", RELEASES)
def test_no_stream_of_ours(pool, make, name):
    t = make(1, 1000, 16)
    t.append(torch.ones(1, 100, 16))
    with Pool("16MiB") as elsewhere, Stream(elsewhere) as foreign, Stream(pool) as own:
        assert foreign.handle == own.handle
        closed = Stream(pool)
        number = closed.handle
        closed.close()
        wrong = ["0", 1.5, True, -1, 2**64, 2**70, number, number + 1, object(), torch, foreign]
        for stream in wrong:
            with pytest.raises(InvalidArgument, match="stream"):
                RELEASES[name](t, stream)
        with pytest.raises(Closed, match="this stream is closed"):
            RELEASES[name](t, closed)
        assert t.length == 100
        assert t[:, :100].eq(1).all()
        assert pool.stats().retirements_waiting == 0
    RELEASES[name](t, 0)  # the host's default stream: nothing is ever under way


class CudaStream:  # what torch.cuda.Stream has
    cuda_stream = 0


def test_a_stream_of_another_library(make):
    t = make(1, 10)
    t.release(0, 10, stream=CudaStream())


def test_streams_end(pool):
    stream = Stream(pool)
    stream.close()
    stream.close()
    for use in (stream.synchronize, lambda: stream.handle, lambda: stream.copy(*[torch.zeros(1)] * 2)):
        with pytest.raises(Closed):
            use()
    with Stream(pool) as stream:
        stream.synchronize()
    pool.close()
    with pytest.raises(Closed, match="pool"):
        Stream(pool)


def test_closing_a_stream_waits(big):
    pool, source, target = big
    target.zero_()
    stream = Stream(pool)
    for _ in range(5):
        stream.copy(target, source)
    stream.close()
    assert target[-1] == 1


def test_what_copy_refuses(pool, make):
    t = make(2, 100, 16)
    t.append(torch.ones(2, 50, 16))
    with Stream(pool) as stream:
        for to, source in [
            (t[0, :3], t[0, :4]), (t[0, :3], t[0, :3].to(torch.float64)), (t[:, :3], t[:, 3:6]),
            (t[0, :3], torch.ones(3, 16)), (torch.ones(3, 16), t[0, :3]),
        ]:  # fmt: skip
            with pytest.raises(InvalidArgument):
                stream.copy(to, source)
        stream.synchronize()
    assert t[:, :50].eq(1).all()


@pytest.mark.parametrize("name", RELEASES)
def test_events_that_do_not_complete(name):
    """The stand-in driver says that the stream is not done yet, for as long as it is told to."""
    from vmm.kv_tensor.memory import KVMemory

    pool = _core.Pool(MIB, pager_thread=False, faults=True, lookahead_pages=0)
    facade = type("Facade", (), {"_core": pool, "_runs_late": False})
    t = KVTensor._over(KVMemory((1, 1000, 16), torch.float32, 1, 4096, facade))
    t.append(torch.ones(1, 640, 16))
    stream = pool.create_stream()
    pool.hold_events(True)
    RELEASES[name](t, stream)
    for _ in range(3):
        pool.poll()
        assert pool.stats()["retirements_waiting"] == 1
        assert pool.stats()["created_bytes"] == 640 * 64
    pool.hold_events(False)
    pool.poll()
    assert pool.stats()["retirements_waiting"] == 0
    pool.destroy_stream(stream)
    pool.check()
