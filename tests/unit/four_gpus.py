"""Four GPUs of the stand-in, and pools on the first."""

from types import SimpleNamespace

import cuda_standin
import pytest
from core_pool import settle

from vmm import _core

PAGE = 2**21


@pytest.fixture
def four_gpus():
    found = cuda_standin.configured(granularity=PAGE)
    found.set(devices=4)
    yield found
    found.set(devices=2, no_peer=-1, peer_granularity=0, rdma=1, posix_fd=1, compute_capability=90)


@pytest.fixture
def own_cuda(four_gpus):
    with cuda_standin.own_calls() as made:
        yield made


def open_core(**special):
    return _core.Pool(
        16 * PAGE,
        arena_bytes=1 << 30,
        pager_thread=False,
        cuda_device=0,
        cuda_host_accessible=True,
        **special,
    )


@pytest.fixture
def mapped(own_cuda):
    """A function that maps two pages of a pool made so."""
    made = []

    def make(**special):
        pool = open_core(**special)
        lease = pool.reserve(page_bytes=pool.granularity, extent_bytes=4 * pool.granularity)
        lease.map([(0, 2)])
        made.append(SimpleNamespace(pool=pool, lease=lease, address=lease.address))
        return made[-1]

    yield make
    for one in made:
        one.pool.check()
        one.lease.retire([(0, 2)])
        settle(one.pool)
        del one.lease
        one.pool.close()
        assert one.pool.stats()["created_bytes"] == 0
