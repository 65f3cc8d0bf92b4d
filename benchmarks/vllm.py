"""vLLM on vmm against vLLM alone: tiny engines on the CPU, each in a process of its own, the two interleaved.

``tokens_identical`` is 1 when every token is stock's, in one process, two, tensor parallel 2, and under a
cap that preempts (48 requests of 100 tokens, greedy, float32). ``rss_ratio_vs_stock``: resident bytes of the
whole process with 6 GiB of KV space and few requests. ``prefix_hits_ratio_vs_stock``: tokens found in the
prefix cache. ``schedule_cpu_ratio`` (see vllm_schedule.py), the median of five processes, and
``generate_cpu_ratio``, of a whole engine in one process: CPU time ÷ stock's. Two engines generate the same
in turns; the ratio is the median of so many pairs of processes, each counting as the median of its turns.
``generate_cpu_ratio_least`` and ``…_most`` are those of single pairs.
``preemptions_under_ample_memory``: over all modes. ``given_back_fraction``: of the KV memory, five seconds
after the last token, by the kernel's account; ``give_back_ms``: when 95 % were back, counted from the end of
the ``idle`` seconds that the engine was told to wait.
``pressure_to_pages_ms``, ``after_kill_ms`` and ``minimum_violations``: of two engines that share memory (see
vllm_share.py).
"""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Callable
from typing import Any

from vmm.benchmarks import vllm_share
from vmm.benchmarks.report import Report, environment, rounded
from vmm.benchmarks.vllm_environment import Worker, result

DEVICES = ("cpu",)

MIB = 2**20
SPACE_BYTES = 6 * 2**30
AMPLE = "64MiB"
IDLE_S, WATCH_S = 2.0, 5.0
SCHEDULES, PAIRS, TURNS = 5, 11, 14
LOAD = [48, 100, 0]  # see vllm_worker.serve
WATCHED_LOAD = [48, 100, WATCH_S + 0.1]
LOW_LOAD = [4, 50, 0]


def run(progress: Callable[[str], None], device: str) -> Report:
    report = Report("vllm", device, environment=environment("torch"))
    report.peers["peer"] = "vLLM alone, in a process of its own"
    with tempfile.TemporaryDirectory() as model:
        result("model", folder=model)
        # Several, because a process differs from the next by some percent, through where its objects happen
        # to lie.
        progress("the scheduler's part, without an engine")
        found = [result("schedule") for _ in range(SCHEDULES)]
        report.metrics["schedule_cpu_ratio"] = statistics.median(
            each["ours_us"] / each["stock_us"] for each in found
        )
        stock_us = statistics.median(each["stock_us"] for each in found)
        report.peers |= {"vllm": found[0]["vllm"], "stock_schedule_us": stock_us}
        reference = _one_process(report, progress, model)
        _other_modes(report, progress, model, reference)
        _large_space(report, progress, model)
        report.metrics |= vllm_share.measured(progress, model)
    report.metrics = dict(rounded(report.metrics.items()))
    return report


def _engine(model: str, ours: bool, space: int = 64 * MIB, **options: Any) -> Worker:
    engine = {"kv_cache_memory_bytes": space, "tensor_parallel_size": options.get("workers", 1)}
    connector = {"budget": options.get("budget", AMPLE), "idle": f"{IDLE_S}s"} if ours else None
    processes = bool(options.get("processes", False))
    return Worker("serve", processes=processes, model=model, engine=engine, connector=connector)


def _served(engine: Worker, load: list[float]) -> dict[str, Any]:
    engine.ask(load)
    return engine.answer()


def _serve(engine: Worker, load: list[float] = LOAD) -> dict[str, Any]:
    """What an engine says that is started for that, and ends."""
    with engine:
        engine.answer()  # it is ready
        return _served(engine, load)


def _one_process(report: Report, progress: Callable[[str], None], model: str) -> list[list[int]]:
    """Fills in what is measured in one process. Returns stock's tokens."""
    metrics = report.metrics
    metrics["tokens_identical"], metrics["preemptions_under_ample_memory"] = 1.0, 0
    reference: list[list[int]] = []
    ratios, given_back, stock_cpu_s = [], [], []
    for number in range(PAIRS):
        progress(f"one process: stock and ours, {number + 1} of {PAIRS}")
        with _engine(model, False) as stock, _engine(model, True) as ours:
            for engine in (stock, ours):
                engine.answer()  # it is ready
            theirs, own = _served(stock, LOAD), _served(ours, LOAD)
            reference = reference or theirs["tokens"]
            metrics["tokens_identical"] *= reference == theirs["tokens"] == own["tokens"]
            metrics["prefix_hits_ratio_vs_stock"] = own["hits"] / theirs["hits"]
            pairs = [_turn(stock, ours, turn) for turn in range(TURNS)]
            last = _served(ours, WATCHED_LOAD)
        ratios.append(statistics.median(own / theirs for theirs, own in pairs))
        stock_cpu_s.append(statistics.median(theirs for theirs, _ in pairs))
        metrics["tokens_identical"] *= reference == last["tokens"]
        metrics["preemptions_under_ample_memory"] += last["preemptions"]
        given_back.append(_given_back(last["watched"]))
    metrics["generate_cpu_ratio"] = statistics.median(ratios)
    metrics["generate_cpu_ratio_least"], metrics["generate_cpu_ratio_most"] = min(ratios), max(ratios)
    report.peers |= {
        "stock_generate_cpu_s": statistics.median(stock_cpu_s),
        "stock_prefix_hits": theirs["hits"],
    }
    metrics["given_back_fraction"] = min(fraction for fraction, _ in given_back)
    metrics["give_back_ms"] = max(milliseconds for _, milliseconds in given_back)
    return reference


def _turn(stock: Worker, ours: Worker, number: int) -> tuple[float, float]:
    """CPU seconds of both, one after the other: in turns, because the second may find a warmer machine."""
    cpu_s = {}
    for engine in (stock, ours) if number % 2 else (ours, stock):
        cpu_s[engine] = _served(engine, LOAD)["cpu_s"]
    return cpu_s[stock], cpu_s[ours]


def _given_back(watched: list[tuple[float, int]]) -> tuple[float, float]:
    """The fraction that is back in the end, and the milliseconds since IDLE_S when 95 % were, or all that."""
    held, left = watched[0][1], watched[-1][1]
    enough = max(0.05 * held, left)
    when = next(milliseconds for milliseconds, size in watched if size <= enough)
    return 1 - left / held, when - 1e3 * IDLE_S


def _other_modes(
    report: Report, progress: Callable[[str], None], model: str, reference: list[list[int]]
) -> None:
    metrics = report.metrics
    for workers in (1, 2):
        progress(f"scheduler and {workers} worker(s) in processes of their own")
        found = _serve(_engine(model, True, processes=True, workers=workers))
        metrics["preemptions_under_ample_memory"] += found["preemptions"]
        metrics["tokens_identical"] *= found["tokens"] == reference
    progress("a cap that preempts")
    capped = _serve(_engine(model, True, budget="4MiB"))
    metrics["tokens_identical"] *= capped["tokens"] == reference
    report.peers["preemptions_under_a_cap_of_4_mib"] = capped["preemptions"]


def _large_space(report: Report, progress: Callable[[str], None], model: str) -> None:
    progress("6 GiB of KV space at a low load: stock and ours")
    stock = _serve(_engine(model, False, SPACE_BYTES), LOW_LOAD)
    ours = _serve(_engine(model, True, SPACE_BYTES, budget="6GiB"), LOW_LOAD)
    report.metrics["rss_ratio_vs_stock"] = ours["rss_bytes"] / stock["rss_bytes"]
    report.peers["stock_rss_bytes"] = stock["rss_bytes"]
