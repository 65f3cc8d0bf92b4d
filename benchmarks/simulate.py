"""The whole engine, pager included, in simulated time: how fast it is simulated, and whether anything is ever
as it should not be.

Metrics: ``steps_per_second`` of wall time, on one core, of a plain course: 64 sequences decoding on one
stream, 128 KiB a token in 2 MiB pages, nothing checked, median of 5 runs of 100,000 steps once all sequences
are there. ``seeds_run`` random courses of 4,000 iterations each, from seed 1 on, with preemptions,
truncations, failing and late driver calls and a late pager, in a third of them with tiers to which sequences
are parked and which fail, too, in which everything is checked after every iteration; ``engine_steps``, calls
of ``KVCache.step`` in these, at least 10,000,000; ``violations``, the seeds that found one. Further, over
these: ``refused`` steps, ``forks``, ``prefixes_attached``, ``tenants``, ``failures_injected``; ``parked`` and
``brought_back`` sequences, ``pages_to_tiers`` and ``pages_from_tiers``, ``tier_failures`` that were injected,
and ``sequences_lost``, which lost tokens by them; and ``checked_steps_per_second`` of wall time, on all
cores. There is no peer: other KV-cache allocators have no simulation.
"""

from __future__ import annotations

import os
import statistics
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from time import perf_counter

from vmm import _core
from vmm.benchmarks.report import Report, environment, rounded, time_once
from vmm.errors import InvariantViolation

DEVICES = ("cpu",)

RUNS, STEPS, WARM_UP_STEPS = 5, 100_000, 5_000
ENGINE_STEPS = 10_000_000
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
    sums: Counter[str] = Counter()
    start = perf_counter()
    with ThreadPoolExecutor(os.cpu_count()) as cores:  # a course runs without the GIL
        while sums["steps"] < ENGINE_STEPS:
            progress(f"random courses: {sums['steps']:,} of {ENGINE_STEPS:,} steps")
            seeds = range(sums["seeds"] + 1, sums["seeds"] + 1 + SEEDS_AT_ONCE)
            for totals, violation in cores.map(_course, seeds):
                sums.update(totals, seeds=1, violations=violation is not None)
                if violation is not None:
                    progress(violation)
    return {
        "seeds_run": sums["seeds"],
        "engine_steps": sums["steps"],
        "violations": sums["violations"],
        "refused": sums["refused"],
        "forks": sums["forks"],
        "prefixes_attached": sums["attached"],
        "tenants": sums["tenants"],
        "failures_injected": sums["failures"],
        "parked": sums["parked"],
        "brought_back": sums["woken"],
        "pages_to_tiers": sums["pages_out"],
        "pages_from_tiers": sums["pages_back"],
        "sequences_lost": sums["lost"],
        "tier_failures": sums["tier_failures"],
        "checked_steps_per_second": sums["steps"] / (perf_counter() - start),
    }


def _course(seed: int) -> tuple[dict[str, int], str | None]:
    """The totals of a random course, and what it has violated."""
    course = _core.Course(seed)
    violation = None
    try:
        course.run(ITERATIONS)
        course.rest()
    except InvariantViolation as error:
        violation = str(error)
    return course.totals(), violation
