import pytest
import torch
from tiny import cache_for, filled, model_of
from transformers import DynamicCache


@pytest.fixture(autouse=True, scope="session")
def one_thread():
    # The models are too small for more, and the suite shares the machine's cores with the pager.
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def pair(pool):
    """A DynamicCache and a VmmCache that hold the same 70 tokens of 3 rows: two pages of each head."""
    model = model_of()
    return filled(DynamicCache(config=model.config), 70, 3), filled(cache_for(model, pool), 70, 3)
