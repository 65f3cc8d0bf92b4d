"""Where the tests of this folder run: on the GPU that torch has.

They are plain functions without fixtures, so that they run without pytest too (benchmarks/gpu/run.sh). With
VMM_GPU_TESTS_ON=cpu those that are not about CUDA itself run on the host driver, which tries the tests
themselves; VMM_TEST_DRIVER=cuda besides, under pytest, is the CUDA driver on the stand-in libcuda.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest import SkipTest  # which pytest knows

import torch

import vmm

ON_CPU = os.environ.get("VMM_GPU_TESTS_ON") == "cpu"
DEVICE = "cpu" if ON_CPU else "cuda:0"
SLEEP_CYCLES = 200_000_000  # 0.1 s at 2 GHz
# cuDNN's attention makes a plan for every length and its strides, most of a second each. benchmarks/gpu asks
# it by itself.
torch.backends.cuda.enable_cudnn_sdp(False)
if ON_CPU:
    torch.set_num_threads(1)  # the work is too small for more
_LONG_COPIES = 40  # of _LONG_BYTES each, on the CPU's streams
_LONG_BYTES = 32 * 2**20


def on_device(test: Callable[[], None]) -> Callable[[], None]:
    """The test runs on DEVICE, or is skipped."""

    @functools.wraps(test)
    def checked() -> None:
        if not ON_CPU and not torch.cuda.is_available():
            raise SkipTest("torch has no CUDA device; VMM_GPU_TESTS_ON=cpu tries what can be tried without")
        test()

    return checked


def on_cuda(test: Callable[[], None]) -> Callable[[], None]:
    """The test is of CUDA itself."""

    @on_device
    @functools.wraps(test)
    def checked() -> None:
        if ON_CPU:
            raise SkipTest("needs CUDA itself")
        test()

    return checked


def synchronize() -> None:
    if not ON_CPU:
        torch.cuda.synchronize()


def here() -> Any:
    """The stream that torch's work goes to now. The CPU's work is over when the call returns."""
    return None if ON_CPU else torch.cuda.current_stream()


def raised(kind: type[Exception], work: Callable[[], Any]) -> Any:
    """What ``work`` raises: it must."""
    try:
        work()
    except kind as error:
        return error
    raise AssertionError(f"{kind.__name__} was not raised")


@functools.cache
def page_bytes() -> int:
    with vmm.Pool("16MiB", device=DEVICE) as pool:
        return pool.default_page_bytes


@contextmanager
def pool_of(pages: int, **options: Any) -> Iterator[vmm.Pool]:
    """A pool for so many pages of the default size; checked at the end."""
    with vmm.Pool(pages * page_bytes(), device=DEVICE, **options) as pool:
        yield pool
        synchronize()
        pool.check()


def tensor_of(pool: vmm.Pool, pages: int, rows: int = 1, **options: Any) -> vmm.KVTensor:
    """Of 16 tokens a page, ``pages`` pages a row, 1/16 page of float32 each."""
    record = pool.default_page_bytes // 16 // 4
    return vmm.KVTensor(rows, 16 * pages, record, pool=pool, device=DEVICE, dtype=torch.float32, **options)


class Side:
    """A stream beside torch's own: torch's, or on the CPU vmm's."""

    def __init__(self, pool: vmm.Pool) -> None:
        self.pool = pool
        self.stream = vmm.Stream(pool) if ON_CPU else torch.cuda.Stream()
        self._busy: list[torch.Tensor] = []
        if ON_CPU:
            elements = _LONG_BYTES // 4
            self._busy = [vmm.KVTensor(elements, pool=pool, grow_dim=0)[:elements] for _ in range(2)]
            self._busy[1].zero_()

    def slow_copy(self, to: torch.Tensor, source: torch.Tensor) -> None:
        """``to`` becomes ``source``, both slices of tensors on the pool, a while after this returned."""
        if ON_CPU:
            for _ in range(_LONG_COPIES):
                self.stream.copy(*self._busy)
            self.stream.copy(to, source)
            return
        self.stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self.stream):
            torch.cuda._sleep(SLEEP_CYCLES)
            to.copy_(source)

    def finish(self) -> None:
        self.stream.synchronize()
        self._busy.clear()
        if ON_CPU:
            self.stream.close()


def side_pages() -> int:
    """Of a pool's budget, what a Side takes."""
    return 2 * _LONG_BYTES // page_bytes() if ON_CPU else 0


def pattern(*shape: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(1, 1000, shape, generator=generator).float().to(DEVICE)
