"""Fixtures that several files use."""

import cuda_standin
import pytest
import torch
from flash_twin import flash_twin
from four_gpus import four_gpus, mapped, own_cuda
from small_gpu import own_small_pool, small_gpu, small_pool
from unchanged_gpu import foreign, unchanged_core, unchanged_tensor

from vmm.benchmarks import attention_kernels

__all__ = [
    "foreign",
    "four_gpus",
    "mapped",
    "own_cuda",
    "own_small_pool",
    "small_gpu",
    "small_pool",
    "unchanged_core",
    "unchanged_tensor",
]


@pytest.fixture
def standin(request):
    """The stand-in with pages as large as the test file's PAGE, where nothing may be misused."""
    with cuda_standin.without_misuse(request.module.PAGE) as found:
        yield found


@pytest.fixture
def cuda(standin):
    """This thread's own calls to libcuda."""
    with cuda_standin.own_calls() as made:
        yield made


@pytest.fixture
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def flash(monkeypatch):
    monkeypatch.setattr(attention_kernels, "flash_forward", flash_twin)
