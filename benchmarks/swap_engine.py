"""What parked sequences cost those that run: the part of ``vmm bench swap`` that needs the engine.

A pool on the host with a tier in its memory, and a KVCache whose pages are the pool's default.

- ``evict_clean_page_ratio``: the time in which a pool gives back a page of a parked sequence that has been
  copied to a tier ÷ a page that a closed sequence has left, in a pool without tiers: the median of the ratios
  of ``PAIRS`` pairs of pools. Nothing is copied in that moment, so 1 is as fast.
- ``step_slowdown_while_swapping``: of an iteration that steps four sequences and computes, the median time
  while parked sequences are loaded ÷ the median while nothing moves; ``PHASES`` of ``ITERATIONS`` each, in
  turn. On the host a copy and a computation share the memory's bandwidth and the processors.
- ``swapped_while_stepping_gb_s``: how much was loaded meanwhile.
"""

from __future__ import annotations

import statistics
import time

import torch

from vmm import KVCache, Pool
from vmm.benchmarks.report import Report, rounded
from vmm.kv_cache import Sequence

PAIRS = 9
BUDGET_BYTES = 256 << 20
PHASES = 10
ITERATIONS = 60

_LAYERS, _HEADS, _DIM = 4, 4, 64
_TOKEN_BYTES = 2 * _LAYERS * _HEADS * _DIM * 4
_SEQUENCES = 16  # that fill the budget
_RUNNING = 4
_SETTLED_S = 0.02  # without a page cleaned


def measure(report: Report) -> None:
    """Adds the metrics to the report."""
    ratio = statistics.median(_evicted(tier=True) / _evicted(tier=False) for _ in range(PAIRS))
    slowdown, speed = _slowdown()
    report.metrics |= rounded(
        [
            ("evict_clean_page_ratio", ratio),
            ("step_slowdown_while_swapping", slowdown),
            ("swapped_while_stepping_gb_s", speed),
        ]
    )


def _cache(pool: Pool, sequences: int, tokens: int) -> KVCache:
    return KVCache(
        _LAYERS,
        _HEADS,
        _DIM,
        dtype=torch.float32,
        max_tokens=2 * tokens,
        max_sequences=sequences,
        pool=pool,
        layout="token-major",
        layers_per_extent=_LAYERS,
    )


def _filled(cache: KVCache, sequences: int, tokens: int) -> list[Sequence]:
    made = []
    for _ in range(sequences):
        sequence = cache.open(tokens)
        cache.step({sequence: tokens})
        made.append(sequence)
    return made


def _evicted(tier: bool) -> float:
    """Seconds for each page that a pool gives back of what nobody needs."""
    tokens = BUDGET_BYTES // _SEQUENCES // _TOKEN_BYTES
    with Pool(BUDGET_BYTES, host=BUDGET_BYTES if tier else None) as pool:
        cache = _cache(pool, _SEQUENCES, tokens)
        sequences = _filled(cache, _SEQUENCES, tokens)
        for sequence in sequences if tier else sequences[:1]:
            sequence.park() if tier else sequence.close()
        cache.end()
        _settle(pool)
        before = pool.stats().pages_unmapped
        start = time.perf_counter()
        pool.trim()
        took = time.perf_counter() - start
        pages = pool.stats().pages_unmapped - before
        if pages == 0:
            raise AssertionError("there was nothing to give back")
        return took / pages


def _settle(pool: Pool) -> None:
    """Waits until the pager has cleaned what it wants to."""
    tiers = pool.stats().tiers
    while tiers is not None:
        time.sleep(_SETTLED_S)
        cleaned = tiers.cleaned_pages
        tiers = pool.stats().tiers
        if tiers is not None and tiers.cleaned_pages == cleaned > 0:
            return


def _slowdown() -> tuple[float, float]:
    """The ratio, and the bytes loaded in a nanosecond meanwhile."""
    tokens = BUDGET_BYTES // _SEQUENCES // _TOKEN_BYTES
    parked = 2 * _SEQUENCES
    with Pool(BUDGET_BYTES, host=4 * BUDGET_BYTES) as pool:
        cache = _cache(pool, parked + _RUNNING, tokens)
        running = dict.fromkeys(_filled(cache, _RUNNING, tokens), tokens)
        idle = []
        for _ in range(parked):
            idle += _filled(cache, 1, tokens)
            idle[-1].park()
            cache.end()
        weights = torch.rand(256, 256)
        times: dict[bool, list[float]] = {True: [], False: []}
        loaded = spent = 0.0
        for phase in range(2 * PHASES):
            swapping = phase % 2 == 1
            before, start = _loaded_pages(pool), time.perf_counter()
            for _ in range(ITERATIONS):
                if swapping:
                    _take_turns(cache, idle)
                times[swapping].append(_iteration(cache, running, weights))
            if swapping:
                loaded += _loaded_pages(pool) - before
                spent += time.perf_counter() - start
            while swapping and not idle[0].ready:  # the next phase begins in quiet
                time.sleep(_SETTLED_S)
        ratio = statistics.median(times[True]) / statistics.median(times[False])
        return ratio, loaded * pool.default_page_bytes / spent / 1e9


def _loaded_pages(pool: Pool) -> int:
    tiers = pool.stats().tiers
    return 0 if tiers is None else tiers.loaded_pages


def _take_turns(cache: KVCache, idle: list[Sequence]) -> None:
    """The first is wanted; when it is there it is idle again, and the next one's turn comes."""
    if idle[0].ready:
        cache.step({idle[0]: idle[0].length})
        idle[0].park()
        idle.append(idle.pop(0))
    cache.prefetch(idle[0])


def _iteration(cache: KVCache, running: dict[Sequence, int], weights: torch.Tensor) -> float:
    start = time.perf_counter()
    cache.step(running)
    for _ in range(4):
        weights = torch.matmul(weights, weights) * 1e-2
    return time.perf_counter() - start
