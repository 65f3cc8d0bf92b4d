import pytest
from tiny import cache_for, filled, model_of
from torch_threads import one_thread  # noqa: F401 - a fixture
from transformers import DynamicCache


@pytest.fixture
def pair(pool):
    """A DynamicCache and a VmmCache that hold the same 70 tokens of 3 rows: two pages of each head."""
    model = model_of()
    return filled(DynamicCache(config=model.config), 70, 3), filled(cache_for(model, pool), 70, 3)
