"""The whole engine, pager included, in simulated time: how fast it is simulated, and whether anything is ever
as it should not be.

Metrics: ``steps_per_second`` of wall time, on one core, of a plain course: 64 sequences decoding on one
stream, 128 KiB a token in 2 MiB pages, nothing checked, median of 5 runs of 100,000 steps once all sequences
are there. ``seeds_run`` random courses of 4,000 iterations each, from seed 1 on, with preemptions,
truncations, failing and late driver calls and a late pager, in which everything is checked after every
iteration; ``engine_steps``, calls of ``KVCache.step`` in these, at least 10,000,000; ``violations``, the
seeds that found one. Further, over these: ``refused`` steps, ``failures_injected``, and
``checked_steps_per_second`` of wall time. There is no peer: other KV-cache allocators have no simulation.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from time import perf_counter

from vmm import _core
from vmm.benchmarks.report import Report, environment, rounded, time_once
from vmm.errors import InvariantViolation

DEVICES = ("cpu",)

RUNS, STEPS, WARM_UP_STEPS = 5, 100_000, 5_000
ENGINE_STEPS = 10_000_000
ITERATIONS = 4_000


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
    seeds = steps = violations = refused = failures = 0
    start = perf_counter()
    while steps < ENGINE_STEPS:
        if seeds % 100 == 0:
            progress(f"random courses: {steps:,} of {ENGINE_STEPS:,} steps")
        seeds += 1
        course = _core.Course(seeds)
        try:
            course.run(ITERATIONS)
            course.rest()
        except InvariantViolation as violation:
            violations += 1
            progress(str(violation))
        totals = course.totals()
        steps += totals["steps"]
        refused += totals["refused"]
        failures += totals["failures"]
    return {
        "seeds_run": seeds,
        "engine_steps": steps,
        "violations": violations,
        "refused": refused,
        "failures_injected": failures,
        "checked_steps_per_second": steps / (perf_counter() - start),
    }
