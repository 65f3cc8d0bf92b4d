"""Budgets of pools on a device that others have filled, and what it costs to ask for its memory. On the
stand-in."""

import contextlib

import pytest
from small_gpu import CAPACITY, PAGE, lease_of

import vmm
from vmm import InvalidArgument, OutOfPages, _core, default_pools, devices


def test_a_lowered_budget_s_debt_is_told(small_pool):
    lease = lease_of(small_pool, 8)
    lease.map([(0, 8)])
    small_pool.core.budget.set_limit(5 * PAGE)
    with pytest.raises(OutOfPages, match=rf"owed {3 * PAGE} to a budget that was lowered"):
        lease_of(small_pool, 1).map([(0, 1)])


def test_a_budget_can_be_lowered_on_a_full_device(own_small_pool, small_pool):
    lease = own_small_pool._core.reserve(page_bytes=PAGE, extent_bytes=32 * PAGE, extents=1)
    lease.map([(0, 10)])
    small_pool.leave(10)  # nothing is free
    own_small_pool.budget_bytes = 20 * PAGE
    own_small_pool.budget_bytes = 15 * PAGE
    with pytest.raises(InvalidArgument, match=r"budget is .*; expected at most"):
        own_small_pool.budget_bytes = 16 * PAGE
    assert own_small_pool.budget_bytes == 15 * PAGE
    own_small_pool.budget_bytes = 5 * PAGE
    own_small_pool.budget_bytes = 10 * PAGE  # as much as it holds
    del lease


def test_a_default_pool_can_be_lowered_on_a_full_device(own_small_pool, small_pool, monkeypatch):
    monkeypatch.setattr(default_pools, "_pools", {})  # an earlier test's is of another driver
    vmm.configure(budget=32 * PAGE)
    try:
        lease = vmm.default_pool()._core.reserve(page_bytes=PAGE, extent_bytes=32 * PAGE, extents=1)
        lease.map([(0, 10)])
        small_pool.leave(10)
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
        small_pool.leave(40)
        vmm.configure()


@pytest.fixture
def unused_device(small_gpu):
    """Of which nobody has a context."""
    small_gpu.set(devices=4)
    yield 3
    small_gpu.set(devices=2)


def test_questions_make_no_context(small_gpu, monkeypatch, unused_device):
    monkeypatch.setattr(devices, "parsed_device", lambda device: ("cuda:3", unused_device))
    before, retained = small_gpu.live()["contexts"], small_gpu.count("cuDevicePrimaryCtxRetain")
    assert "3" not in before
    assert _core.cuda_free_bytes(unused_device) == CAPACITY  # all of it: what is free cannot be asked
    assert _core.cuda_name(unused_device)
    vmm.configure(budget="1MiB")
    vmm.configure()
    assert small_gpu.live()["contexts"] == before
    assert small_gpu.count("cuDevicePrimaryCtxRetain") == retained
    context = _core.CudaContext(unused_device)  # as torch's
    small_gpu.set(others=PAGE)
    assert context.free_bytes() == _core.cuda_free_bytes(unused_device) == CAPACITY - PAGE
    del context
    assert small_gpu.live()["contexts"] == before


def test_a_pool_s_questions_retain_nothing(own_small_pool, small_gpu):
    before = small_gpu.count("cuDevicePrimaryCtxRetain")
    own_small_pool.budget_bytes = 20 * PAGE
    own_small_pool.budget_bytes = 21 * PAGE
    assert small_gpu.count("cuDevicePrimaryCtxRetain") == before


def test_a_pool_with_a_bad_budget_leaves_no_context(small_gpu, monkeypatch, unused_device):
    monkeypatch.setattr(devices, "parsed_device", lambda device: ("cpu", unused_device))
    with contextlib.suppress(InvalidArgument):
        vmm.Pool("1TiB")
    assert "3" not in small_gpu.live()["contexts"]
