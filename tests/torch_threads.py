"""A fixture for suites that compute with torch."""

import pytest
import torch


@pytest.fixture(autouse=True, scope="session")
def one_thread():
    # What is computed is too small for more, and the suite shares the machine's cores with the pager.
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
