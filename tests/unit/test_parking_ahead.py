"""Parked sequences that are prefetched, and others that need the memory meanwhile."""

import time

import pytest
import torch

from vmm import KVCache, OutOfPages, Pool

PAGE = 64 << 10
PER_PAGE = PAGE // (2 * 64 * 4)  # tokens
PATIENCE_S = 20.0


class Scene:
    """A pool of a few pages, and sequences of one layer that have whole pages of tokens."""

    def __init__(self, pages, **options):
        self.pool = Pool(pages * PAGE, host="64MiB", **options)
        self.cache = KVCache(
            1,
            1,
            64,
            dtype=torch.float32,
            max_tokens=64 * PER_PAGE,
            max_sequences=8,
            pool=self.pool,
            layout="token-major",
            page_bytes=PAGE,
        )
        self.filled = 0.0

    def full(self, pages):
        sequence = self.cache.open(pages * PER_PAGE)
        self.cache.step({sequence: pages * PER_PAGE})
        self.filled += 1
        for kv in sequence.kv(0):
            kv.fill_(self.filled)
        return sequence

    def parked(self, pages, **hint):
        sequence = self.full(pages)
        sequence.park(**hint)
        self.cache.end()
        return sequence

    def passing(self, pages):
        """Somebody takes so much memory, and ends."""
        self.full(pages).close()
        self.cache.end()


def becomes_ready(sequence):
    until = time.monotonic() + PATIENCE_S
    while not sequence.ready and time.monotonic() < until:
        time.sleep(0.001)
    return sequence.ready


def has(sequence, number):
    return all(bool((kv == number).all()) for kv in sequence.kv(0))


def test_what_was_loaded_ahead_and_went_again_can_be_prefetched_again():
    scene = Scene(16)
    sequence = scene.parked(6)
    scene.passing(14)
    assert not sequence.ready
    for _ in range(3):
        scene.cache.prefetch(sequence)
        assert becomes_ready(sequence)
        scene.passing(14)  # takes what was loaded
        assert not sequence.ready
    assert scene.pool.stats().tiers.loads == 3
    scene.cache.step({sequence: sequence.length})
    assert has(sequence, 1)


def test_what_is_prefetched_without_a_copy_gives_way_too():
    scene = Scene(16)
    sequence = scene.parked(6)
    scene.cache.prefetch(sequence)
    assert becomes_ready(sequence)  # it has never been away
    scene.passing(14)
    assert not sequence.ready
    scene.cache.step({sequence: sequence.length})
    assert has(sequence, 1)


def test_who_is_parked_in_an_open_epoch_keeps_nobody_from_loading():
    scene = Scene(16, eviction="priority")
    away, *_ = [scene.parked(6, priority=5) for _ in range(3)]
    last = scene.full(8)
    last.park(priority=-5)  # the first to go, but its epoch stays open
    assert not away.ready
    scene.cache.prefetch(away)
    assert becomes_ready(away)
    scene.cache.end()
    scene.cache.step({away: away.length, last: last.length})
    assert has(away, 1)
    assert has(last, 4)


def test_who_was_chosen_while_it_was_wanted_is_cleaned_later():
    scene = Scene(16, eviction="lru")
    sequence = scene.parked(7)
    scene.passing(15)
    scene.cache.step({sequence: sequence.length + 8})
    sequence.park()  # its last page has no copy
    scene.cache.end()
    scene.parked(1)
    running = scene.full(12)
    with pytest.raises(OutOfPages):  # looks for victims while the sequence is wanted
        scene.cache.step({running: running.length, sequence: sequence.length})
    scene.cache.step({running: 16 * PER_PAGE})  # all memory there is
    running.close()
    scene.cache.step({sequence: sequence.length})
    assert all(bool((kv[: 7 * PER_PAGE] == 1).all()) for kv in sequence.kv(0))
