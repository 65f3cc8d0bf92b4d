"""A device that is fuller than the budget, because others have grown on it. On the stand-in."""

import contextlib
import ctypes
import gc
import pickle
from types import SimpleNamespace

import cuda_standin
import pytest
import torch
from core_pool import settle

import vmm.pool
from vmm import InvalidArgument, KVTensor, OutOfPages, _core

PAGE = 2**21
CAPACITY = 64 * PAGE
NOT_READY = 600


@pytest.fixture
def standin():
    found = cuda_standin.configured(granularity=PAGE, capacity=CAPACITY)
    gc.collect()  # what earlier tests left in reference cycles
    assert cuda_standin.created_bytes() == 0, f"an earlier test has left {found.live()}"
    yield found
    found.set(others=0, capacity=2**30)


@pytest.fixture
def pool(standin):
    """With a budget of half the device."""
    made = _core.Pool(
        32 * PAGE, arena_bytes=1 << 32, pager_thread=False, cuda_device=0, cuda_host_accessible=True
    )
    yield SimpleNamespace(core=made, leave=lambda pages: standin.set(others=CAPACITY - pages * PAGE))
    standin.set(others=0)
    gc.collect()  # what an exception's frames hold on to
    made.check()
    settle(made)
    made.close()
    made.check()
    assert made.stats()["created_bytes"] == 0


def lease_of(pool, pages, **options):
    return pool.core.reserve(page_bytes=PAGE, extent_bytes=pages * PAGE, **options)


def idle(pool, pages):
    lease_of(pool, pages).map([(0, pages)])


def test_idle_memory_makes_room(pool):
    idle(pool, 8)
    pool.leave(10)  # the device has two more
    lease = lease_of(pool, 9)  # of another shape: nothing can be adopted
    lease.map([(0, 9)])
    assert lease.mapped_bytes == 9 * PAGE
    assert pool.core.stats()["created_bytes"] <= 10 * PAGE


def test_surplus_makes_room(pool):
    other = lease_of(pool, 8)
    other.map([(0, 8)])
    other.unkeep([(2, 6)])
    pool.leave(8)
    lease = lease_of(pool, 6)
    lease.map([(0, 6)])
    assert (lease.mapped_bytes, other.mapped_bytes) == (6 * PAGE, 2 * PAGE)


def test_pages_of_another_size_are_exchanged(pool):
    idle(pool, 8)
    pool.leave(8)
    lease = pool.core.reserve(page_bytes=2 * PAGE, extent_bytes=8 * PAGE)
    lease.map([(0, 4)])
    assert lease.mapped_bytes == 8 * PAGE


def test_what_cannot_be_had_says_that_it_was_the_device(pool):
    lease = lease_of(pool, 16)
    lease.map([(0, 4)])
    pool.leave(6)
    with pytest.raises(OutOfPages, match=r"the device .*cuMemCreate.*CUDA_ERROR_OUT_OF_MEMORY") as raised:
        lease.map([(0, 16)])
    assert raised.value.of_device
    assert lease.mapped_bytes == 4 * PAGE
    assert pool.core.stats()["kept_bytes"] == 4 * PAGE
    lease.map([(0, 6)])


def test_what_the_budget_refuses_does_not_say_so(pool):
    lease = lease_of(pool, 33)
    with pytest.raises(OutOfPages) as raised:
        lease.map([(0, 33)])
    assert not raised.value.of_device
    assert "device" not in str(raised.value)


def test_when_others_end_their_memory_is_had_at_once(pool):
    lease = lease_of(pool, 16)
    pool.leave(6)
    with pytest.raises(OutOfPages):
        lease.map([(0, 16)])
    pool.leave(16)
    lease.map([(0, 16)])


def test_an_admission_also_asks_the_device_again(pool):
    lease = lease_of(pool, 16)
    growth = _core.Growth(pool.core, [(lease, 0, 1, PAGE)])
    pool.leave(6)
    with pytest.raises(OutOfPages):
        growth.advance(16)
    pool.leave(16)
    _core.admit([growth], 16)
    assert growth.advance(16) == 16


def test_a_lowered_budget_s_debt_is_told(pool):
    lease = lease_of(pool, 8)
    lease.map([(0, 8)])
    pool.core.budget.set_limit(5 * PAGE)
    with pytest.raises(OutOfPages, match=rf"owed {3 * PAGE} to a budget that was lowered"):
        lease_of(pool, 1).map([(0, 1)])


class TorchCache:
    """Stands for torch's: ``pages`` that emptying it gives back to the device."""

    def __init__(self, monkeypatch, pool, pages):
        self.emptied = 0
        self._give_back = lambda: pool.leave(pages)
        monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
        monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
        monkeypatch.setattr(torch.cuda, "empty_cache", self.empty)

    def empty(self):
        self.emptied += 1
        self._give_back()


CALLS = {
    "map": lambda pool, lease: lease.map([(0, 12)]),
    "advance": lambda pool, lease: _core.Growth(pool.core, [(lease, 0, 1, PAGE)]).advance(12),
}


@pytest.mark.parametrize("name", CALLS)
def test_torch_s_cache_is_emptied_once(pool, monkeypatch, name):
    lease = lease_of(pool, 12)
    pool.leave(6)
    cache = TorchCache(monkeypatch, pool, 12)
    CALLS[name](pool, lease)
    assert (lease.mapped_bytes, cache.emptied) == (12 * PAGE, 1)


def test_torch_s_cache_is_emptied_in_vain(pool, monkeypatch):
    lease = lease_of(pool, 12)
    pool.leave(6)
    cache = TorchCache(monkeypatch, pool, 7)
    with pytest.raises(OutOfPages) as raised:
        lease.map([(0, 12)])
    assert raised.value.of_device
    assert cache.emptied == 1


def test_torch_s_cache_is_left_alone_while_our_own_memory_idles(pool, monkeypatch):
    idle(pool, 8)
    pool.leave(8)
    cache = TorchCache(monkeypatch, pool, 12)
    lease_of(pool, 7).map([(0, 7)])
    assert cache.emptied == 0


def test_torch_s_cache_is_left_alone_during_a_capture(pool, monkeypatch):
    lease = lease_of(pool, 12)
    pool.leave(6)
    cache = TorchCache(monkeypatch, pool, 12)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    with pytest.raises(OutOfPages):
        lease.map([(0, 12)])
    assert cache.emptied == 0


def test_a_cache_that_cannot_be_emptied_changes_nothing(pool, monkeypatch):
    lease = lease_of(pool, 12)
    pool.leave(6)
    cache = TorchCache(monkeypatch, pool, 12)
    monkeypatch.setattr(cache, "_give_back", lambda: torch.zeros(1).view(7))  # a RuntimeError
    with pytest.raises(OutOfPages) as raised:
        lease.map([(0, 12)])
    assert (raised.value.of_device, raised.value.asked) == (True, 12 * PAGE)
    assert (cache.emptied, lease.mapped_bytes) == (1, 0)
    pool.core.check()
    lease.map([(0, 6)])  # what the device has
    del lease  # which the logged error holds by its frames


def test_a_tensor_and_a_cache(standin, pool, monkeypatch):
    """The ways of KVTensor and KVCache into the engine."""
    if not cuda_standin.ON_CUDA:
        monkeypatch.setattr(vmm.pool, "_parsed_device", lambda device: ("cpu", 0))
        monkeypatch.setattr(vmm.pool, "_cuda_host_accessible", True)
    with vmm.Pool(32 * PAGE, lookahead_pages=0) as own:
        tensor = KVTensor(1, 8 * 512, 1024, pool=own)  # 512 tokens a page
        cache = vmm.KVCache(1, 1, 512, torch.float32, max_tokens=8 * 512, max_sequences=2, pool=own)
        emptied = TorchCache(monkeypatch, pool, 24)

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
            pool.leave(pages)
            use()
            assert emptied.emptied == pages + 1
        cache.close()
        tensor.close()


@pytest.fixture
def own(standin, pool, monkeypatch):
    """A vmm.Pool with a budget of half the device."""
    if not cuda_standin.ON_CUDA:
        monkeypatch.setattr(vmm.pool, "_parsed_device", lambda device: ("cpu", 0))
        monkeypatch.setattr(vmm.pool, "_cuda_host_accessible", True)
    with vmm.Pool(32 * PAGE) as made:
        yield made


def test_a_budget_can_be_lowered_on_a_full_device(own, pool):
    lease = own.reserve(page_bytes=PAGE, extent_bytes=32 * PAGE, extents=1)
    lease.map([(0, 10)])
    pool.leave(10)  # nothing is free
    own.budget_bytes = 20 * PAGE
    own.budget_bytes = 15 * PAGE
    with pytest.raises(InvalidArgument, match=r"budget is .*; expected at most"):
        own.budget_bytes = 16 * PAGE
    assert own.budget_bytes == 15 * PAGE
    own.budget_bytes = 5 * PAGE
    own.budget_bytes = 10 * PAGE  # as much as it holds
    del lease


def test_a_default_pool_can_be_lowered_on_a_full_device(own, pool, monkeypatch):
    monkeypatch.setattr(vmm.pool, "_defaults", {})  # an earlier test's is of another driver
    vmm.configure(budget=32 * PAGE)
    try:
        lease = vmm.default_pool().reserve(page_bytes=PAGE, extent_bytes=32 * PAGE, extents=1)
        lease.map([(0, 10)])
        pool.leave(10)
        vmm.configure(budget=20 * PAGE)
        assert vmm.default_pool().budget_bytes == 20 * PAGE
        with pytest.raises(InvalidArgument, match="budget"):
            vmm.configure(budget=21 * PAGE)
        assert vmm.default_pool().budget_bytes == 20 * PAGE
        vmm.configure()  # half of what is free and what it holds
        assert vmm.default_pool().budget_bytes == 5 * PAGE
        del lease
        vmm.default_pool().close()
    finally:
        pool.leave(40)
        vmm.configure()


@pytest.fixture
def unused_device(standin):
    """Of which nobody has a context."""
    standin.set(devices=4)
    yield 3
    standin.set(devices=1)


def test_questions_make_no_context(standin, monkeypatch, unused_device):
    monkeypatch.setattr(vmm.pool, "_parsed_device", lambda device: ("cuda:3", unused_device))
    before, retained = standin.live()["contexts"], standin.count("cuDevicePrimaryCtxRetain")
    assert "3" not in before
    assert _core.cuda_free_bytes(unused_device) == CAPACITY  # all of it: what is free cannot be asked
    assert _core.cuda_name(unused_device)
    vmm.configure(budget="1MiB")
    vmm.configure()
    assert standin.live()["contexts"] == before
    assert standin.count("cuDevicePrimaryCtxRetain") == retained
    context = _core.CudaContext(unused_device)  # as torch's
    standin.set(others=PAGE)
    assert context.free_bytes() == _core.cuda_free_bytes(unused_device) == CAPACITY - PAGE
    del context
    assert standin.live()["contexts"] == before


def test_a_pool_s_questions_retain_nothing(own, standin):
    before = standin.count("cuDevicePrimaryCtxRetain")
    own.budget_bytes = 20 * PAGE
    own.budget_bytes = 21 * PAGE
    assert standin.count("cuDevicePrimaryCtxRetain") == before


def test_a_pool_with_a_bad_budget_leaves_no_context(standin, monkeypatch, unused_device):
    monkeypatch.setattr(vmm.pool, "_parsed_device", lambda device: ("cpu", unused_device))
    with contextlib.suppress(InvalidArgument):
        vmm.Pool("1TiB")
    assert "3" not in standin.live()["contexts"]


def test_accelerate_s_search_recognises_it(pool):
    """By these conditions of accelerate.utils.memory.should_reduce_batch_size, 1.15."""
    with pytest.raises(OutOfPages) as raised:
        lease_of(pool, 33).map([(0, 33)])
    error = raised.value
    assert isinstance(error, torch.OutOfMemoryError)
    assert isinstance(error, RuntimeError)
    assert len(error.args) == 1
    assert " out of memory." in error.args[0]
    copied = pickle.loads(pickle.dumps(error))
    assert (type(copied), str(copied), vars(copied)) == (type(error), str(error), vars(error))
    assert copied.asked == 33 * PAGE


def test_neighbours_are_zeroed_by_one_call(pool, standin):
    lease = lease_of(pool, 8, zeroed=True)
    before = standin.count("cuMemsetD8Async"), standin.count("cuStreamSynchronize")
    lease.map([(0, 4), (6, 2)])
    assert standin.count("cuMemsetD8Async") == before[0] + 2
    assert standin.count("cuStreamSynchronize") == before[1] + 1


def test_zeroing_is_queued_where_it_goes_before_all_else(pool, standin):
    """On a stream of the highest priority there is, and on no other."""
    queued = []
    with cuda_standin.own_calls() as cuda:
        lease = lease_of(pool, 8, zeroed=True)
        standin.sync_all()

        def look():
            queued.extend(
                stream["priority"]
                for stream in standin.live()["streams"]
                if cuda.cuStreamQuery(stream["id"]) == NOT_READY
            )

        standin.before("cuStreamSynchronize", look)
        lease.map([(0, 4)])
        least, greatest = ctypes.c_int(), ctypes.c_int()
        standin.library.cuCtxGetStreamPriorityRange(ctypes.byref(least), ctypes.byref(greatest))
        assert queued == [greatest.value]
        assert greatest.value < least.value
