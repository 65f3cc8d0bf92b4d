"""Fixtures that several files use."""

import pytest
import torch
from flash_twin import flash_twin
from four_gpus import four_gpus, mapped, own_cuda
from small_gpu import own_small_pool, small_gpu, small_pool

from vmm.benchmarks import attention_kernels

__all__ = ["four_gpus", "mapped", "own_cuda", "own_small_pool", "small_gpu", "small_pool"]


@pytest.fixture
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def flash(monkeypatch):
    monkeypatch.setattr(attention_kernels, "flash_forward", flash_twin)
