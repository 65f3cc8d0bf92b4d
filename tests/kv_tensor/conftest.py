import pytest
from torch_threads import one_thread  # noqa: F401 - a fixture

from vmm import KVTensor


@pytest.fixture
def make(pool):
    """KVTensors on the pool, with pages that rows rarely divide."""
    return lambda *shape, **options: KVTensor(*shape, pool=pool, **({"page_bytes": 4096} | options))
