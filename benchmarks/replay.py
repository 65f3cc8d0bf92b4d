"""Real request traces in simulated time: what mapping on demand costs, and what it saves.

Llama-3.1-8B on an A100 of 80 GiB, and with only 24; three traces, each at its own rate and at twice, four
times … as much, until throughput stops growing (by 2 %). Every allocator of ``vmm simulate`` serves each of
these runs. Nothing is timed: the same commit gives the same numbers everywhere. docs/simulate.md says how an
iteration takes its time and what is left out.

Metrics of one run, as ``{trace}_{memory}gib_x{load}_{metric}``; of a trace, as ``{trace}_{metric}``, and of
all, as ``{metric}``. Ratios over several runs are geometric means, beside which the ``worst_`` stands.

- ``throughput_vs_zero_cost_driver``, ``ttft_p99_vs_zero_cost_driver``: ours ÷ the same with a driver, and a
  pager's wake-up, that take no time.
- ``stall_ms_per_1000_iterations``, ``longest_stall_ms``: what steps waited for pages.
- ``hide_ratio``: 1 - late ÷ all of the mappings that a step came to write; late: not complete when the step
  that first writes them was called. No admission is delayed for pages.
- ``fragmentation``: 1 - live ÷ held, both bytes of running sequences × seconds; held counts announced prompts
  and look-ahead.
- ``peak_sequences_vs_paged16``, ``peak_sequences_vs_static``: running at once.
- ``throughput_vs_static``, ``throughput_vs_per_layer_sync``, ``throughput_vs_paged16``. Static is left out
  where it holds no sequence of the longest length.
- ``first_prompts_stall_ms``, ``first_prompts_longest_stall_ms``: what steps waited for pages in serving the
  first 32 requests alone, with 80 GiB, whole prompts in one step (up to 8,192 tokens) and a KVCache that was
  not told ``first_tokens``; ``…_warm``: the same after ``Pool.warm`` of 8 GiB.
- ``pages_mapped_per_1000_tokens``, and ``…_without_reuse``: if every sequence had mapped all of its pages.

``--prefix-sharing`` measures something else, on those of the traces that have hash ids: see
replay_prefixes.py.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial

from vmm.benchmarks import replay_prefixes
from vmm.benchmarks.report import Report, environment, rounded
from vmm.benchmarks.trace_files import given_files, read_files
from vmm.simulate import ALLOCATORS, Settings, Trace, find_gpu, find_model, replay
from vmm.simulate.settings import MEMORY_FRACTION, WORKSPACE_BYTES

DEVICES = ("simulation",)

TRACES = {
    "azure_conv": "AzureLLMInferenceTrace_conv.csv.gz",
    "azure_code": "AzureLLMInferenceTrace_code.csv.gz",
    "mooncake_conversation": "mooncake_conversation_trace.jsonl.gz",
}
MODEL, GPU = find_model("llama-3.1-8b"), find_gpu("a100-80gb")
MEMORIES_GIB = (80, 24)
GROWTH = 1.02  # of throughput, when it has not stopped growing
MOST_LOAD = 64
FIRST_PROMPTS = 32
FIRST_BATCH_TOKENS = 8192
WARM_BYTES = 2**33

Metrics = dict[str, float]
Runs = dict[str, Metrics]  # by allocator


def run(progress: Callable[[str], None], device: str, prefix_sharing: bool = False) -> Report:
    report = Report("replay", "simulation", environment=environment())
    report.environment |= {"model": MODEL.name, "gpu": GPU.name, "call_times": GPU.call_times.source}
    if prefix_sharing:
        measured = replay_prefixes.measure(progress, read_traces(), settings_for, settings_with(80))
        report.metrics = rounded(measured.items(), 5)
        report.peers = dict.fromkeys(("unlimited blocks", "paged16-prefix"), "simulated bookkeeping")
        return report
    everything: list[Runs] = []
    for name, trace in read_traces().items():
        of_trace: list[Runs] = []
        for gib in MEMORIES_GIB:
            for load, runs in until_it_stops_growing(
                trace, settings_with(gib), partial(_tell, progress, name)
            ):
                of_trace.append(runs)
                report.metrics |= _named(
                    f"{name}_{gib}gib_x{load}_", {**_absolute(runs), **_together([runs])}
                )
        report.metrics |= _named(f"{name}_", _together(of_trace) | first_prompts(trace))
        everything += of_trace
    report.metrics |= _together(everything)
    report.metrics = rounded(report.metrics.items(), 5)
    report.peers = {name: "simulated bookkeeping" for name in ALLOCATORS if not name.startswith("vmm")}
    return report


def _tell(progress: Callable[[str], None], name: str, what: str) -> None:
    progress(f"{name} {what}")


def settings_with(gib: int, **options: int) -> Settings:
    """``MODEL`` on ``GPU``, as if that had so many GiB of memory."""
    return Settings(MODEL, GPU, gib * 2**30, MODEL.max_tokens, GPU.call_times, **options)


def settings_for(kv_bytes: int) -> Settings:
    """The same, with so much memory for K and V."""
    memory_bytes = math.ceil((kv_bytes + MODEL.weight_bytes + WORKSPACE_BYTES) / MEMORY_FRACTION)
    return Settings(MODEL, GPU, memory_bytes, MODEL.max_tokens, GPU.call_times)


def read_traces() -> dict[str, Trace]:
    """Raises InvalidArgument for what is not there."""
    return read_files(given_files(TRACES))


def until_it_stops_growing(
    trace: Trace, settings: Settings, progress: Callable[[str], None]
) -> list[tuple[int, Runs]]:
    """The offered load, and what each allocator made of it."""
    found: list[tuple[int, Runs]] = []
    load, before = 1, 0.0
    while load <= MOST_LOAD:
        progress(f"at {load} times its rate, {settings.memory_bytes >> 30} GiB")
        found.append((load, replay_with_all(trace.at_load(load), settings)))
        now = found[-1][1]["vmm"]["throughput_tokens_per_s"]
        if now < GROWTH * before:
            break
        load, before = 2 * load, now
    return found


def replay_with_all(trace: Trace, settings: Settings) -> Runs:
    """Beside each other: the core does not hold Python's lock."""
    with ThreadPoolExecutor(os.cpu_count()) as workers:
        results = workers.map(lambda name: replay(trace, settings, name), ALLOCATORS)
        return {result.allocator: result.metrics for result in results}


def first_prompts(trace: Trace) -> Metrics:
    """Ours, from the start on."""
    first = replace(trace, requests=trace.requests[:FIRST_PROMPTS])
    metrics: Metrics = {}
    for suffix, warm_bytes in (("", 0), ("_warm", WARM_BYTES)):
        untold = {"batch_tokens": FIRST_BATCH_TOKENS, "warm_bytes": warm_bytes, "first_tokens_known": False}
        ours = replay(first, settings_with(MEMORIES_GIB[0], **untold), "vmm").metrics
        stalls_ms = ours["stall_ms_per_1000_iterations"] * ours["iterations"] / 1000
        metrics[f"first_prompts_stall_ms{suffix}"] = stalls_ms
        metrics[f"first_prompts_longest_stall_ms{suffix}"] = ours["longest_stall_ms"]
    return metrics


def _absolute(runs: Runs) -> Metrics:
    """That mean nothing over several runs."""
    ours = runs["vmm"]
    names = (
        "throughput_tokens_per_s",
        "ttft_p50_ms",
        "ttft_p99_ms",
        "peak_sequences",
        "preempted",
        "rejected",
    )
    return {name: ours[name] for name in names}


def _together(all_runs: list[Runs]) -> Metrics:
    ours = [runs["vmm"] for runs in all_runs]

    def total(name: str) -> float:
        return sum(each[name] for each in ours)

    metrics: Metrics = {}
    for name, peer, metric, worst in (
        ("throughput_vs_zero_cost_driver", "vmm-zero-cost", "throughput_tokens_per_s", min),
        ("ttft_p99_vs_zero_cost_driver", "vmm-zero-cost", "ttft_p99_ms", max),
        ("peak_sequences_vs_paged16", "paged16", "peak_sequences", min),
        ("peak_sequences_vs_static", "static", "peak_sequences", min),
        ("throughput_vs_paged16", "paged16", "throughput_tokens_per_s", min),
        ("throughput_vs_static", "static", "throughput_tokens_per_s", min),
        ("throughput_vs_per_layer_sync", "per-layer-sync", "throughput_tokens_per_s", min),
    ):
        ratios = [runs["vmm"][metric] / runs[peer][metric] for runs in all_runs if runs[peer][metric]]
        if ratios:
            metrics[name] = math.exp(sum(map(math.log, ratios)) / len(ratios))
        if len(ratios) > 1:
            metrics[f"worst_{name}"] = worst(ratios)
    tokens = total("prompt_tokens") + total("output_tokens")
    return metrics | {
        "stall_ms_per_1000_iterations": sum(
            each["stall_ms_per_1000_iterations"] * each["iterations"] for each in ours
        )
        / total("iterations"),
        "longest_stall_ms": max(each["longest_stall_ms"] for each in ours),
        "hide_ratio": 1 - total("pages_late") / total("pages_first_used"),
        "worst_hide_ratio": min(each["hide_ratio"] for each in ours),
        "fragmentation": 1 - total("live_byte_seconds") / total("held_byte_seconds"),
        "worst_fragmentation": max(each["fragmentation"] for each in ours),
        "pages_mapped_per_1000_tokens": 1000 * total("pages_mapped") / tokens,
        "pages_mapped_per_1000_tokens_without_reuse": 1000 * total("pages_without_reuse") / tokens,
    }


def _named(prefix: str, metrics: Metrics) -> Metrics:
    return {prefix + name: value for name, value in metrics.items()}
