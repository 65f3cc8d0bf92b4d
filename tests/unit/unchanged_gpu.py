"""A GPU of the stand-in with a pool and a tensor on it, which refusals leave as they were."""

import ctypes
from types import SimpleNamespace

import cuda_standin
import pytest
import torch
from core_pool import settle
from cuda_calls import NON_BLOCKING

import vmm
from vmm import KVTensor, _core

PAGE = 2**21


@pytest.fixture
def unchanged_core(cuda):
    """A pool with a mapped lease: whatever is refused leaves both as they were."""
    pool = _core.Pool(
        16 * PAGE, arena_bytes=1 << 30, pager_thread=False, cuda_device=0, cuda_host_accessible=True
    )
    lease = pool.reserve(page_bytes=PAGE, extent_bytes=4 * PAGE)
    lease.map([(0, 2)])
    before = pool.stats()
    made = SimpleNamespace(pool=pool, lease=lease)
    yield made
    assert pool.stats() == before
    pool.check()
    lease.retire([(0, 2)])
    settle(pool)
    lease.map([(0, 4)])  # nobody holds anything back for good
    pool.check()
    del lease, made.lease
    pool.close()
    assert pool.stats()["created_bytes"] == 0


@pytest.fixture
def unchanged_tensor(unchanged_core, monkeypatch):
    """A KVTensor of a pool on device 0 that torch takes for the CPU's."""
    cuda_standin.shown_as_cpu(monkeypatch.setattr)
    with vmm.Pool("32MiB", lookahead_pages=0) as pool:
        made = KVTensor(1, 2048, 1024, pool=pool)  # four pages
        made.append(torch.ones(1, 600, 1024))
        yield made
        assert made.length == 600
        assert made[0, :600].eq(1).all()
        made.append(torch.ones(1, 100, 1024))
        made.close()
        pool.check()


@pytest.fixture
def foreign(cuda):
    """A stream of device 1."""
    other = cuda.get_number("cuDevicePrimaryCtxRetain", 1)
    cuda.do("cuCtxPushCurrent", other)
    stream = cuda.get_number("cuStreamCreate", NON_BLOCKING)
    cuda.do("cuCtxPopCurrent", ctypes.byref(ctypes.c_uint64()))
    yield stream
    cuda.do("cuStreamDestroy", stream)
    cuda.do("cuDevicePrimaryCtxRelease", 1)
