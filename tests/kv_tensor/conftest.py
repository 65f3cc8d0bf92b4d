import pytest
import torch

from vmm import KVTensor


@pytest.fixture(autouse=True, scope="session")
def one_thread_of_torch():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def make(pool):
    """KVTensors on the pool, with pages that rows rarely divide."""
    return lambda *shape, **options: KVTensor(*shape, pool=pool, **({"page_bytes": 4096} | options))
