"""The whole engine, pager included, in simulated time: how fast it is simulated, and whether anything is ever
as it should not be.

Metrics: ``steps_per_second`` of wall time, on one core, of a plain course: 64 sequences decoding on one
stream, 128 KiB a token in 2 MiB pages, nothing checked, median of 5 runs of 100,000 steps once all sequences
are there. ``seeds_run`` random courses of 4,000 iterations each, from seed 1 on, with preemptions,
truncations, failing and late driver calls and a late pager, in which everything is checked after every
iteration; ``engine_steps``, calls of ``KVCache.step`` in these, at least 10,000,000; ``violations``, the
seeds that found one. Further, over these: ``refused`` steps, ``forks``, ``prefixes_attached``, ``tenants``,
``failures_injected``, and ``checked_steps_per_second`` of wall time, on all cores.

Then courses in which sequences are parked, to tiers that fail, too: ``tiers_seeds_run``,
``tiers_engine_steps``, at least 10,000,000, and ``tiers_violations``; ``parked`` and ``brought_back``
sequences, ``pages_to_tiers`` and ``pages_from_tiers``, ``tier_failures`` that were injected, and
``sequences_lost``, which lost tokens by them. There is no peer: other KV-cache allocators have no simulation.
"""

from __future__ import annotations

import os
import statistics
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from time import perf_counter

from vmm import _core
from vmm.benchmarks.report import Report, environment, rounded, time_once
from vmm.errors import InvariantViolation

DEVICES = ("cpu",)

RUNS, STEPS, WARM_UP_STEPS = 5, 100_000, 5_000
ENGINE_STEPS, TIER_STEPS = 10_000_000, 10_000_000
ITERATIONS = 4_000
SEEDS_AT_ONCE = 64


def run(progress: Callable[[str], None], device: str) -> Report:
    report = Report("simulate", device, environment=environment())
    report.peers = {"peer": "none: no other KV-cache allocator has a simulation"}
    progress("a plain course of 64 sequences")
    report.metrics["steps_per_second"] = _steps_per_second()
    report.metrics |= _violations(progress)
    report.metrics = rounded(report.metrics.items(), digits=9)
    return report


def _steps_per_second() -> float:
    course = _core.Course(1, plain=True, check=False)
    course.run(WARM_UP_STEPS)
    return STEPS / statistics.median(time_once(lambda: course.run(STEPS)) for _ in range(RUNS))


def _violations(progress: Callable[[str], None]) -> dict[str, float]:
    sums, seconds = _courses(progress, ENGINE_STEPS, tiers=False)
    parked, _ = _courses(progress, TIER_STEPS, tiers=True)
    return {
        "seeds_run": sums["seeds"],
        "engine_steps": sums["steps"],
        "violations": sums["violations"],
        "refused": sums["refused"],
        "forks": sums["forks"],
        "prefixes_attached": sums["attached"],
        "tenants": sums["tenants"],
        "failures_injected": sums["failures"],
        "checked_steps_per_second": sums["steps"] / seconds,
        "tiers_seeds_run": parked["seeds"],
        "tiers_engine_steps": parked["steps"],
        "tiers_violations": parked["violations"],
        "parked": parked["parked"],
        "brought_back": parked["woken"],
        "pages_to_tiers": parked["pages_out"],
        "pages_from_tiers": parked["pages_back"],
        "sequences_lost": parked["lost"],
        "tier_failures": parked["tier_failures"],
    }


def _courses(progress: Callable[[str], None], steps: int, *, tiers: bool) -> tuple[Counter[str], float]:
    """The sums over random courses with so many steps, or a few more, and the seconds that they took."""
    sums: Counter[str] = Counter()
    start, seed, kind = perf_counter(), 1, "with tiers" if tiers else "without tiers"
    with ThreadPoolExecutor(os.cpu_count()) as cores:  # a course runs without the GIL
        while sums["steps"] < steps:
            progress(f"random courses {kind}: {sums['steps']:,} of {steps:,} steps")
            seeds = range(seed, seed + SEEDS_AT_ONCE)
            seed += SEEDS_AT_ONCE
            for found in cores.map(partial(_course, tiers=tiers), seeds):
                if found is None:
                    continue
                totals, violation = found
                sums.update(totals, seeds=1, violations=violation is not None)
                if violation is not None:
                    progress(violation)
    return sums, perf_counter() - start


def _course(seed: int, *, tiers: bool) -> tuple[dict[str, int], str | None] | None:
    """The totals of a random course, and what it has violated; nothing where it should have tiers and the
    seed draws none."""
    course = _core.Course(seed, tiers=tiers)
    if tiers and not course.has_tiers:
        return None
    violation = None
    try:
        course.run(ITERATIONS)
        course.rest()
    except InvariantViolation as error:
        violation = str(error)
    return course.totals(), violation
