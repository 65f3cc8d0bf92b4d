"""What is released while a kernel still reads it stays as it is until the kernel is over."""

import threading

import torch
from gpu_device import (
    DEVICE,
    ON_CPU,
    SLEEP_CYCLES,
    Side,
    here,
    on_cuda,
    on_device,
    pattern,
    pool_of,
    raised,
    side_pages,
    synchronize,
    tensor_of,
)

import vmm
from vmm.testing import settle

PAGES = 4


class OtherLibrarysStream:
    """What cuda.core's streams, cupy's and others' have in common."""

    def __init__(self, handle: int) -> None:
        self._handle = handle

    def __cuda_stream__(self) -> tuple[int, int]:
        return 0, self._handle


def stream_forms(stream) -> list:
    """All that stream= takes for this stream."""
    if ON_CPU:
        return [stream, stream.handle]
    return [stream, stream.cuda_stream, OtherLibrarysStream(stream.cuda_stream)]


RELEASES = {
    "release": lambda t, stream: t.release(0, t.shape[1], stream=stream),
    "truncate": lambda t, stream: t.truncate(0, stream=stream),
    "close": lambda t, stream: t.close(stream=stream),
}


def _release_under_a_copy(name: str, form: int) -> None:
    """The memory is all the budget has: whoever wants it next must wait for the copy."""
    with pool_of(2 * PAGES + side_pages(), lookahead_pages=0) as pool:
        side = Side(pool)
        copied, t = tensor_of(pool, PAGES), tensor_of(pool, PAGES)
        expected = pattern(*t.shape, seed=7)
        t.append(expected)
        copied.reserve(copied.shape[1])
        synchronize()
        side.slow_copy(copied[0, : t.shape[1]], t[0, : t.shape[1]])
        RELEASES[name](t, stream_forms(side.stream)[form])
        assert pool.stats().retirements_waiting > 0, "the copy was over too soon to show anything"
        heir = tensor_of(pool, PAGES)
        assert heir[:, : heir.shape[1]].eq(0).all()  # it waits, and its pages are zeroed after the copy
        heir[:, : heir.shape[1]] = 9.0
        side.finish()
        synchronize()
        assert torch.equal(copied[:, : copied.shape[1]], expected)
        assert heir[:, : heir.shape[1]].eq(9).all()
        settle(pool, still_seconds=0.01)
        assert pool.stats().retirements_waiting == 0


@on_device
def test_release_under_a_copy_waits_for_it():
    for form in range(2 if ON_CPU else 3):
        _release_under_a_copy("release", form)


@on_device
def test_truncate_under_a_copy_waits_for_it():
    for form in range(2 if ON_CPU else 3):
        _release_under_a_copy("truncate", form)


@on_device
def test_close_under_a_copy_waits_for_it():
    for form in range(2 if ON_CPU else 3):
        _release_under_a_copy("close", form)


@on_cuda
def test_the_default_stream_by_every_name():
    for stream in (torch.cuda.default_stream(), torch.cuda.current_stream(), 0, OtherLibrarysStream(0)):
        with pool_of(2 * PAGES, lookahead_pages=0) as pool:
            t = tensor_of(pool, PAGES)
            expected = pattern(*t.shape, seed=3)
            t.append(expected)
            seen = torch.empty_like(expected)
            synchronize()
            torch.cuda._sleep(SLEEP_CYCLES)
            seen.copy_(t[:, : t.shape[1]])
            t.close(stream=stream)
            assert pool.stats().retirements_waiting > 0
            pool.trim()  # takes it only after the copy
            synchronize()
            assert torch.equal(seen, expected)


@on_cuda
def test_streams_that_torch_uses_need_no_name():
    """The current stream of whoever uses the tensor is waited for in any case."""
    for stream in (torch.cuda.default_stream(), torch.cuda.Stream()):
        with pool_of(2 * PAGES, lookahead_pages=0) as pool:
            t = tensor_of(pool, PAGES)
            expected = pattern(*t.shape, seed=5)
            t.append(expected)
            seen = torch.empty_like(expected)
            synchronize()
            with torch.cuda.stream(stream):
                torch.cuda._sleep(SLEEP_CYCLES)
                seen.copy_(t[:, : t.shape[1]])
            del t  # from another stream
            heirs = [tensor_of(pool, PAGES) for _ in range(2)]  # all of the budget
            for heir in heirs:
                heir[:, : heir.shape[1]] = 9.0
            synchronize()
            assert torch.equal(seen, expected)


@on_cuda
def test_record_stream_adds_a_stream():
    with pool_of(2 * PAGES, lookahead_pages=0) as pool:
        t = tensor_of(pool, PAGES)
        expected = pattern(*t.shape, seed=6)
        t.append(expected)
        whole, seen, side = t[:, : t.shape[1]], torch.empty_like(expected), torch.cuda.Stream()
        synchronize()
        t.record_stream(side)
        with torch.cuda.stream(side):
            torch.cuda._sleep(SLEEP_CYCLES)
            seen.copy_(whole)
        del whole
        t.truncate(0)
        assert pool.stats().retirements_waiting > 0
        assert t[:, : t.shape[1]].eq(0).all()
        synchronize()
        assert torch.equal(seen, expected)


@on_cuda
def test_a_vmm_stream_on_the_gpu():
    with pool_of(4 * PAGES) as pool, vmm.Stream(pool) as stream:
        a, b = tensor_of(pool, PAGES), tensor_of(pool, PAGES)
        expected = pattern(*a.shape, seed=4)
        a.append(expected)
        synchronize()
        stream.copy(b[0, : b.shape[1]], a[0, : a.shape[1]])
        a.close(stream=stream)
        stream.synchronize()
        assert torch.equal(b[:, : b.shape[1]], expected)
        external = torch.cuda.ExternalStream(stream.handle)
        with torch.cuda.stream(external):
            b[:, : b.shape[1]] += 1
        stream.synchronize()
        assert torch.equal(b[:, : b.shape[1]], expected + 1)


@on_device
def test_what_is_no_stream():
    with pool_of(PAGES) as pool:
        t = tensor_of(pool, PAGES)
        t.append(pattern(1, 20, t.shape[2]))
        for wrong in ("0", 1.5, True, -1, 2**64, object(), torch):
            for release in RELEASES.values():
                error = raised(vmm.InvalidArgument, lambda: release(t, wrong))  # noqa: B023
                assert "stream" in str(error)
        assert t.length == 20


@on_device
def test_threads_with_streams_of_their_own():
    failures: list[BaseException] = []
    with pool_of(40) as pool:

        def work(seed: int) -> None:
            try:
                for turn in range(10):
                    t = tensor_of(pool, PAGES)
                    expected = pattern(*t.shape, seed=100 * seed + turn)
                    for start in range(0, t.shape[1], 8):
                        t.append(expected[:, start : start + 8])
                    assert torch.equal(t[:, : t.shape[1]], expected)
                    t.close(stream=here())
            except BaseException as error:
                failures.append(error)

        def on_own_stream(seed: int) -> None:
            if ON_CPU:
                return work(seed)
            with torch.cuda.stream(torch.cuda.Stream(DEVICE)):
                return work(seed)

        threads = [threading.Thread(target=on_own_stream, args=(seed,)) for seed in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not failures, failures
