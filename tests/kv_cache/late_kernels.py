"""Kernels that read a sequence's memory later than the cache's calls return."""

import own_pool
import torch
from cuda_calls import SUCCESS

from vmm import KVCache

PAGE = 65536
TOKENS = 64  # in a page: 1 KiB each


def make(pool, slots=2, pages=6, **options):
    return KVCache(
        2,
        4,
        32,
        torch.float16,
        max_tokens=pages * TOKENS,
        max_sequences=slots,
        pool=pool,
        page_bytes=PAGE,
        layers_per_extent=2,
        **options,
    )


def step(cache, stream, *wanted):
    """Of (sequence, length) each."""
    own_pool.step(cache, *wanted, stream=stream)


def address_of(sequence):
    """Where the slot of ``sequence`` begins, in a cache of one part."""
    lease = sequence.cache._leases[0]
    return lease.address + sequence.slot * lease.extent_bytes


class Kernel:
    """Reads what ``sequence`` holds, or writes it from ``start`` on, after so much other work (``late``) that
    the stand-in will not have come to it before it is waited for."""

    def __init__(self, standin, stream, sequence, start=None, late=500):
        self.over = False
        first = address_of(sequence)
        for _ in range(late):
            standin.launch(stream)
        end = first + 1024 * sequence.length
        if start is None:
            used = {"reads": [(first, end - first)]}
        else:
            used = {"writes": [(first + 1024 * start, end - first - 1024 * start)]}
        assert standin.launch(stream, self._run, **used) == SUCCESS

    def _run(self):
        self.over = True


def busy(standin, cache, stream, pages, start=None):
    """A sequence in an epoch of ``stream`` that is open, and the kernel that reads it."""
    sequence = cache.open(0, stream=stream)
    step(cache, stream, (sequence, pages * TOKENS))
    return sequence, Kernel(standin, stream, sequence, start)
