"""A GPU of the stand-in that is small, so that others can fill it, and pools with a budget of half of it."""

import gc
from types import SimpleNamespace

import cuda_standin
import pytest
from core_pool import settle

import vmm
from vmm import _core

PAGE = 2**21
CAPACITY = 64 * PAGE


@pytest.fixture
def small_gpu():
    found = cuda_standin.configured(granularity=PAGE, capacity=CAPACITY)
    gc.collect()  # what earlier tests left in reference cycles
    assert cuda_standin.created_bytes() == 0, f"an earlier test has left {found.live()}"
    yield found
    found.set(others=0, capacity=2**30)


@pytest.fixture
def small_pool(small_gpu):
    """With a budget of half the device."""
    made = _core.Pool(
        32 * PAGE, arena_bytes=1 << 32, pager_thread=False, cuda_device=0, cuda_host_accessible=True
    )
    yield SimpleNamespace(core=made, leave=lambda pages: small_gpu.set(others=CAPACITY - pages * PAGE))
    small_gpu.set(others=0)
    gc.collect()  # what an exception's frames hold on to
    made.check()
    settle(made)
    made.close()
    made.check()
    assert made.stats()["created_bytes"] == 0


def lease_of(small_pool, pages, **options):
    return small_pool.core.reserve(page_bytes=PAGE, extent_bytes=pages * PAGE, **options)


@pytest.fixture
def own_small_pool(small_gpu, small_pool, monkeypatch):
    """A vmm.Pool with a budget of half the device."""
    cuda_standin.shown_as_cpu(monkeypatch.setattr)
    with vmm.Pool(32 * PAGE) as made:
        yield made
