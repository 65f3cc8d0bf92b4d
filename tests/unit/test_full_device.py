"""A device that is fuller than the budget, because others have grown on it. On the stand-in."""

import ctypes
import pickle

import cuda_standin
import pytest
import torch
from small_gpu import PAGE, lease_of

import vmm
import vmm.device_memory
from vmm import KVTensor, OutOfPages, _core

NOT_READY = 600


def idle(small_pool, pages):
    lease_of(small_pool, pages).map([(0, pages)])


def test_idle_memory_makes_room(small_pool):
    idle(small_pool, 8)
    small_pool.leave(10)  # the device has two more
    lease = lease_of(small_pool, 9)  # of another shape: nothing can be adopted
    lease.map([(0, 9)])
    assert lease.mapped_bytes == 9 * PAGE
    assert small_pool.core.stats()["created_bytes"] <= 10 * PAGE


def test_surplus_makes_room(small_pool):
    other = lease_of(small_pool, 8)
    other.map([(0, 8)])
    other.unkeep([(2, 6)])
    small_pool.leave(8)
    lease = lease_of(small_pool, 6)
    lease.map([(0, 6)])
    assert (lease.mapped_bytes, other.mapped_bytes) == (6 * PAGE, 2 * PAGE)


def test_pages_of_another_size_are_exchanged(small_pool):
    idle(small_pool, 8)
    small_pool.leave(8)
    lease = small_pool.core.reserve(page_bytes=2 * PAGE, extent_bytes=8 * PAGE)
    lease.map([(0, 4)])
    assert lease.mapped_bytes == 8 * PAGE


def test_what_cannot_be_had_says_that_it_was_the_device(small_pool):
    lease = lease_of(small_pool, 16)
    lease.map([(0, 4)])
    small_pool.leave(6)
    with pytest.raises(OutOfPages, match=r"the device .*cuMemCreate.*CUDA_ERROR_OUT_OF_MEMORY") as raised:
        lease.map([(0, 16)])
    assert raised.value.of_device
    assert lease.mapped_bytes == 4 * PAGE
    assert small_pool.core.stats()["kept_bytes"] == 4 * PAGE
    assert small_pool.core.stats()["created_bytes"] == 4 * PAGE  # what it got in vain is others' again
    lease.map([(0, 6)])


def test_what_the_budget_refuses_does_not_say_so(small_pool):
    lease = lease_of(small_pool, 33)
    with pytest.raises(OutOfPages) as raised:
        lease.map([(0, 33)])
    assert not raised.value.of_device
    assert "device" not in str(raised.value)


def test_when_others_end_their_memory_is_had_at_once(small_pool):
    lease = lease_of(small_pool, 16)
    small_pool.leave(6)
    with pytest.raises(OutOfPages):
        lease.map([(0, 16)])
    small_pool.leave(16)
    lease.map([(0, 16)])


def test_an_admission_also_asks_the_device_again(small_pool):
    lease = lease_of(small_pool, 16)
    growth = _core.Growth(small_pool.core, [(lease, 0, 1, PAGE)])
    small_pool.leave(6)
    with pytest.raises(OutOfPages):
        growth.advance(16)
    small_pool.leave(16)
    _core.admit([growth], 16)
    assert growth.advance(16) == 16


class TorchCache:
    """Stands for torch's: ``pages`` that emptying it gives back to the device."""

    def __init__(self, monkeypatch, small_pool, pages):
        self.emptied = 0
        self._give_back = lambda: small_pool.leave(pages)
        monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
        monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
        monkeypatch.setattr(torch.cuda, "empty_cache", self.empty)
        monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: self.cached)
        monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 0)
        monkeypatch.setattr(vmm.device_memory, "_left", {})
        self.cached = pages * PAGE
        self.left = 0  # of that, what it cannot give back

    def empty(self):
        self.emptied += 1
        self._give_back()
        self.cached = self.left


CALLS = {
    "map": lambda small_pool, lease: lease.map([(0, 12)]),
    "advance": lambda small_pool, lease: _core.Growth(small_pool.core, [(lease, 0, 1, PAGE)]).advance(12),
}


@pytest.mark.parametrize("name", CALLS)
def test_torch_s_cache_is_emptied_once(small_pool, monkeypatch, name):
    lease = lease_of(small_pool, 12)
    small_pool.leave(6)
    cache = TorchCache(monkeypatch, small_pool, 12)
    CALLS[name](small_pool, lease)
    assert (lease.mapped_bytes, cache.emptied) == (12 * PAGE, 1)


def test_torch_s_cache_is_emptied_in_vain(small_pool, monkeypatch):
    lease = lease_of(small_pool, 12)
    small_pool.leave(6)
    cache = TorchCache(monkeypatch, small_pool, 7)
    with pytest.raises(OutOfPages) as raised:
        lease.map([(0, 12)])
    assert raised.value.of_device
    assert cache.emptied == 1


def test_what_torch_could_not_give_back_it_is_not_asked_for_again(small_pool, monkeypatch):
    lease = lease_of(small_pool, 12)
    small_pool.leave(6)
    cache = TorchCache(monkeypatch, small_pool, 7)
    cache.left = 3 * PAGE
    for _ in range(3):  # an engine that tries again at every step
        with pytest.raises(OutOfPages):
            lease.map([(0, 12)])
    assert cache.emptied == 1
    cache.cached = 4 * PAGE  # there is more of it
    with pytest.raises(OutOfPages):
        lease.map([(0, 12)])
    assert cache.emptied == 2


def test_another_pool_of_the_device_gives_up_what_it_does_not_need(small_pool, own_small_pool):
    idle = own_small_pool._core.reserve(page_bytes=PAGE, extent_bytes=8 * PAGE, extents=1)
    idle.map([(0, 8)])
    del idle
    used = own_small_pool._core.reserve(page_bytes=PAGE, extent_bytes=2 * PAGE, extents=1)
    used.map([(0, 2)])
    small_pool.leave(12)  # two more than the other has
    lease = lease_of(small_pool, 9)
    lease.map([(0, 9)])
    assert (lease.mapped_bytes, used.mapped_bytes) == (9 * PAGE, 2 * PAGE)
    with pytest.raises(OutOfPages):
        lease_of(small_pool, 3).map([(0, 3)])


def test_torch_s_cache_is_left_alone_while_our_own_memory_idles(small_pool, monkeypatch):
    idle(small_pool, 8)
    small_pool.leave(8)
    cache = TorchCache(monkeypatch, small_pool, 12)
    lease_of(small_pool, 7).map([(0, 7)])
    assert cache.emptied == 0


def test_torch_s_cache_is_left_alone_during_a_capture(small_pool, monkeypatch):
    lease = lease_of(small_pool, 12)
    small_pool.leave(6)
    cache = TorchCache(monkeypatch, small_pool, 12)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    with pytest.raises(OutOfPages):
        lease.map([(0, 12)])
    assert cache.emptied == 0


def test_a_cache_that_cannot_be_emptied_changes_nothing(small_pool, monkeypatch):
    lease = lease_of(small_pool, 12)
    small_pool.leave(6)
    cache = TorchCache(monkeypatch, small_pool, 12)
    monkeypatch.setattr(cache, "_give_back", lambda: torch.zeros(1).view(7))  # a RuntimeError
    with pytest.raises(OutOfPages) as raised:
        lease.map([(0, 12)])
    assert (raised.value.of_device, raised.value.asked) == (True, 12 * PAGE)
    assert (cache.emptied, lease.mapped_bytes) == (1, 0)
    small_pool.core.check()
    lease.map([(0, 6)])  # what the device has
    del lease  # which the logged error holds by its frames


def test_a_tensor_and_a_cache(small_gpu, small_pool, monkeypatch):
    """The ways of KVTensor and KVCache into the engine."""
    cuda_standin.shown_as_cpu(monkeypatch.setattr)
    with vmm.Pool(32 * PAGE, lookahead_pages=0) as own:
        tensor = KVTensor(1, 8 * 512, 1024, pool=own)  # 512 tokens a page
        cache = vmm.KVCache(1, 1, 512, torch.float32, max_tokens=8 * 512, max_sequences=2, pool=own)
        emptied = TorchCache(monkeypatch, small_pool, 24)

        def step():
            slot = cache.open().slot  # not before: the pager would map what it needs by itself
            cache.step(torch.tensor([slot], dtype=torch.int32), torch.tensor([512], dtype=torch.int32))

        for pages, use in enumerate(
            (
                lambda: tensor[:, :512],
                lambda: tensor[:, torch.tensor([512])],
                lambda: tensor.reserve(3 * 512),
                step,
            )
        ):
            small_pool.leave(pages)
            emptied.cached = PAGE
            use()
            assert emptied.emptied == pages + 1
        cache.close()
        tensor.close()


def test_accelerate_s_search_recognises_it(small_pool):
    """By these conditions of accelerate.utils.memory.should_reduce_batch_size, 1.15."""
    with pytest.raises(OutOfPages) as raised:
        lease_of(small_pool, 33).map([(0, 33)])
    error = raised.value
    assert isinstance(error, torch.OutOfMemoryError)
    assert isinstance(error, RuntimeError)
    assert len(error.args) == 1
    assert " out of memory." in error.args[0]
    copied = pickle.loads(pickle.dumps(error))
    assert (type(copied), str(copied), vars(copied)) == (type(error), str(error), vars(error))
    assert copied.asked == 33 * PAGE


def test_neighbours_are_zeroed_by_one_call(small_pool, small_gpu):
    lease = lease_of(small_pool, 8, zeroed=True)
    before = small_gpu.count("cuMemsetD8Async"), small_gpu.count("cuStreamSynchronize")
    lease.map([(0, 4), (6, 2)])
    assert small_gpu.count("cuMemsetD8Async") == before[0] + 2
    assert small_gpu.count("cuStreamSynchronize") == before[1] + 1


def test_zeroing_is_queued_where_it_goes_before_all_else(small_pool, small_gpu):
    """On a stream of the highest priority there is, and on no other."""
    queued = []
    with cuda_standin.own_calls() as cuda:
        lease = lease_of(small_pool, 8, zeroed=True)
        small_gpu.sync_all()

        def look():
            queued.extend(
                stream["priority"]
                for stream in small_gpu.live()["streams"]
                if cuda.cuStreamQuery(stream["id"]) == NOT_READY
            )

        small_gpu.before("cuStreamSynchronize", look)
        lease.map([(0, 4)])
        least, greatest = ctypes.c_int(), ctypes.c_int()
        small_gpu.library.cuCtxGetStreamPriorityRange(ctypes.byref(least), ctypes.byref(greatest))
        assert queued == [greatest.value]
        assert greatest.value < least.value
