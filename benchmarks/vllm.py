"""vLLM on vmm against vLLM alone: tiny engines on the CPU, each in a process of its own, the two interleaved.

``tokens_identical`` is 1 when every token is stock's, in one process, two, tensor parallel 2, and under a
cap that preempts (48 requests of 100 tokens, greedy, float32). ``rss_ratio_vs_stock``: resident bytes of the
whole process with 6 GiB of KV space and few requests. ``prefix_hits_ratio_vs_stock``: tokens found in the
prefix cache. ``schedule_cpu_ratio`` (see vllm_schedule.py) and ``generate_cpu_ratio``, of a whole engine in
one process: CPU time ÷ stock's, the median of five pairs of processes each.
``preemptions_under_ample_memory``: over all modes. ``given_back_fraction``: of the KV memory, five seconds
after the last token, by the kernel's account; ``give_back_ms``: when 95 % were back, counted from the end of
the ``idle`` second that the engine was told to wait.
``pressure_to_pages_ms``, ``after_kill_ms`` and ``minimum_violations``: of two engines that share memory (see
vllm_share.py).
"""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Callable
from typing import Any

from vmm.benchmarks import vllm_environment, vllm_share
from vmm.benchmarks.report import Report, environment, rounded

DEVICES = ("cpu",)

MIB = 2**20
SPACE_BYTES = 6 * 2**30
AMPLE = "64MiB"
IDLE_S, WATCH_S = 1.0, 5.0
SCHEDULES, ROUNDS, GENERATES = 5, 5, 5
SERVE = {"requests": 48, "tokens": 100, "rounds": 0, "watch_s": 0.0}
LOW_LOAD = SERVE | {"requests": 4, "tokens": 50}


def run(progress: Callable[[str], None], device: str) -> Report:
    report = Report("vllm", device, environment=environment("torch"))
    report.peers["peer"] = "vLLM alone, in a process of its own"
    with tempfile.TemporaryDirectory() as model:
        vllm_environment.finish(vllm_environment.start("model", folder=model))
        # Several, because a process differs from the next by some percent, through where its objects happen
        # to lie.
        progress("the scheduler's part, without an engine")
        found = [vllm_environment.finish(vllm_environment.start("schedule")) for _ in range(SCHEDULES)]
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


def _serve(model: str, ours: bool, space: int = 64 * MIB, **options: Any) -> dict[str, Any]:
    engine = {"kv_cache_memory_bytes": space, "tensor_parallel_size": options.pop("workers", 1)}
    connector = {"budget": options.pop("budget", AMPLE), "idle": f"{IDLE_S}s"} if ours else None
    processes = bool(options.pop("processes", False))
    arguments = SERVE | options | {"model": model, "engine": engine, "connector": connector}
    return vllm_environment.finish(vllm_environment.start("serve", processes=processes, **arguments))


def _one_process(report: Report, progress: Callable[[str], None], model: str) -> list[list[int]]:
    """Fills in what is measured in one process. Returns stock's tokens."""
    stocks, ours = [], []
    for number in range(ROUNDS):
        progress(f"one process: stock and ours, {number + 1} of {ROUNDS}")
        stocks.append(_serve(model, False, rounds=GENERATES))
        ours.append(_serve(model, True, rounds=GENERATES, watch_s=WATCH_S + 0.1))
    reference: list[list[int]] = stocks[0]["tokens"]
    metrics = report.metrics
    metrics["tokens_identical"] = float(all(found["tokens"] == reference for found in stocks + ours))
    metrics["prefix_hits_ratio_vs_stock"] = ours[0]["hits"] / stocks[0]["hits"]
    metrics["preemptions_under_ample_memory"] = sum(found["preemptions"] for found in ours)
    pairs = zip(ours, stocks, strict=True)
    metrics["generate_cpu_ratio"] = statistics.median(_cpu(own) / _cpu(stock) for own, stock in pairs)
    report.peers |= {"stock_generate_cpu_s": _cpu(stocks[0]), "stock_prefix_hits": stocks[0]["hits"]}
    metrics["given_back_fraction"] = min(_given_back(found["watched"])[0] for found in ours)
    metrics["give_back_ms"] = max(_given_back(found["watched"])[1] for found in ours)
    return reference


def _cpu(found: dict[str, Any]) -> float:
    seconds: list[float] = found["cpu_s"]
    return statistics.median(seconds)


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
        found = _serve(model, True, processes=True, workers=workers)
        metrics["preemptions_under_ample_memory"] += found["preemptions"]
        metrics["tokens_identical"] *= found["tokens"] == reference
    progress("a cap that preempts")
    capped = _serve(model, True, budget="4MiB")
    metrics["tokens_identical"] *= capped["tokens"] == reference
    report.peers["preemptions_under_a_cap_of_4_mib"] = capped["preemptions"]


def _large_space(report: Report, progress: Callable[[str], None], model: str) -> None:
    progress("6 GiB of KV space at a low load: stock and ours")
    stock = _serve(model, False, SPACE_BYTES, **LOW_LOAD)
    ours = _serve(model, True, SPACE_BYTES, budget="6GiB", **LOW_LOAD)
    report.metrics["rss_ratio_vs_stock"] = ours["rss_bytes"] / stock["rss_bytes"]
    report.peers["stock_rss_bytes"] = stock["rss_bytes"]
