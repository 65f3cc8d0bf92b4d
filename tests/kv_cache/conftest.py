"""Pools on the stand-in, whose kernels are late."""

import cuda_standin
import pytest
from saved_cache import cache, path, saved  # noqa: F401 - fixtures

from vmm import Pool, _core

PAGE = 65536


@pytest.fixture
def standin():
    with cuda_standin.without_misuse(PAGE) as found:
        yield found
    cuda_standin.configured(granularity=4096)


@pytest.fixture
def cuda(standin):
    with cuda_standin.own_calls() as made:
        yield made


@pytest.fixture
def gpu_pool(cuda, request):
    """Of eight pages, or as many as the test is parametrized with. Its pager has no thread."""
    pages = getattr(request, "param", 8)
    core = _core.Pool(
        pages * PAGE, arena_bytes=1 << 30, pager_thread=False, cuda_device=0, cuda_host_accessible=True
    )
    yield Pool._over(core)
    core.check()
    core.close()


@pytest.fixture
def streams(gpu_pool, standin):
    """Two, A and B."""
    made = [gpu_pool._core.create_stream() for _ in range(2)]
    yield made
    standin.sync_all()
    for stream in made:
        gpu_pool._core.destroy_stream(stream)
