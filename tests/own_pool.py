"""A vmm.Pool for KVCaches whose driver calls can be made to fail, with no pager thread: the test polls."""

import gc

import cuda_standin
import torch
from cuda_standin import ON_CUDA

from vmm import Pool, _core

PAGE = 4096


class FewMappings:
    """A pool's core on a machine with a low vm.max_map_count."""

    def __init__(self, core, max_mappings):
        self._core = core
        self.max_mappings = max_mappings

    def __getattr__(self, name):
        return getattr(self._core, name)


def faulty_pool(pages, **options):
    device = {"cuda_device": 0, "cuda_host_accessible": True} if ON_CUDA else {}
    if ON_CUDA:
        gc.collect()  # what an exception's frames hold on to
        cuda_standin.loaded().reset(seed=1)  # the same steps must take the same course
    core = _core.Pool(
        pages * PAGE,
        arena_bytes=1 << 30,
        run_bytes=4 * PAGE,
        pager_thread=False,
        faults=True,
        **device,
        **options,
    )
    return Pool._over(core)


def one_pool():
    """For all tests of a module: what an exception's frames hold on to would keep every pool's addresses."""
    with Pool("64MiB") as pool:
        yield pool
        pool._core.end(0)
        pool.check()
        assert pool.stats().kept_bytes == 0


def int32(*numbers):
    return torch.tensor(numbers, dtype=torch.int32)


def step(cache, *wanted, stream=None):
    """Of (sequence, length) each."""
    sequences, lengths = zip(*wanted, strict=True)
    cache.step(int32(*(sequence.slot for sequence in sequences)), int32(*lengths), stream)
