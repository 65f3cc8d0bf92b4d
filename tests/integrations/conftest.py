import pytest
import torch

from vmm import Pool


@pytest.fixture(autouse=True, scope="session")
def one_thread():
    # The models are too small for more, and the suite shares the machine's cores with the pager.
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def pool():
    with Pool("64MiB") as pool:
        yield pool
        pool.check()
