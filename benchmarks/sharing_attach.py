"""How long ``KVCache.open`` takes where it finds a prefix, by the way in which the sequence gets it: part of
``vmm bench sharing``."""

from __future__ import annotations

import statistics
from collections.abc import Callable

import torch

from vmm.benchmarks.report import time_once
from vmm.kv_cache import KVCache, Sequence

# In each round one sequence has a prompt of its own, two more begin with it, and one adopts the slot
# when all have ended. A cache aliases first, into a slot without pages. Then it copies, into the slot whose
# pages are left of another sequence, if it knows that this is cheaper here.
SEQUENCES = 3
# Memory for so many sequences: beside two, a copy needs four times its size free.
PARTS = 7

_WAYS = {"adopt": "adopted", "alias": "aliased", "copy": "copied"}


def attach_seconds(
    make_cache: Callable[[], KVCache], tokens: int, rounds: int, synchronize: Callable[[], None]
) -> dict[str, float]:
    """The median seconds of each way that was taken. ``make_cache`` makes an empty one for ``tokens`` + 1
    tokens; ``synchronize`` waits for the device."""
    seconds: dict[str, list[float]] = {way: [] for way in _WAYS}
    prompt = torch.arange(tokens + 1, dtype=torch.int32)

    def open_one(cache: KVCache) -> Sequence:
        made = []
        before = cache.stats()
        synchronize()

        def work() -> None:
            made.append(cache.open(tokens=prompt))
            synchronize()

        took = time_once(work)
        now = cache.stats()
        for way, counter in _WAYS.items():
            if getattr(now, counter) > getattr(before, counter):
                seconds[way].append(took)
        assert made[0].cached_tokens == tokens
        return made[0]

    for _ in range(rounds):
        with make_cache() as cache:
            first, other = cache.open(tokens), cache.open(tokens)
            cache.step({first: tokens, other: tokens})
            first.commit(prompt[:-1])
            other.close()
            cache.end()
            sequences = [first, open_one(cache), open_one(cache)]
            for sequence in sequences:
                sequence.close()
            cache.end()
            open_one(cache).close()
            pool = cache.pool
        pool.trim()  # what is left would be in the next cache's way
    return {way: statistics.median(found) for way, found in seconds.items() if found}
