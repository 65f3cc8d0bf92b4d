"""``vmm bench replay --prefix-sharing``: prompts that begin with what others have computed.

Of the traces of ``vmm bench replay`` those with hash ids are served at their own rate, by Llama-3.1-8B on an
A100 with as much memory as is said: their first ``FIRST_REQUESTS`` requests, which with all allocators take a
minute or two. docs/simulate.md says which tokens requests have. Metrics of one trace,
as ``{trace}_{metric}``, and of all, as ``{metric}``: geometric means over the traces.

With memory and slots for all of their tokens:

- ``prefix_hit_fraction``: of the tokens of prompts, those that were there when a request was first admitted.
- ``prefix_hit_fraction_unlimited``: the most that there can be: every block of 16 tokens of every earlier
  request, whether it was computed by then or not.
- ``prefix_hit_fraction_over_unlimited``: the first ÷ the second.

With memory for 3M tokens (``3m_``), and with the 80 GiB of the GPU (``80gib_``):

- ``prefix_hit_fraction``, and ``lru_prefix_hit_fraction`` of blocks of 16 tokens, least recently used evicted
  first, in as much memory; ``prefix_hit_fraction_over_lru``: the first ÷ the second.
- ``throughput_with_over_without``: generated tokens a second with and without sharing;
  ``throughput_over_lru``: with sharing ÷ that of the blocks.
- ``prefixes_adopted``, ``_aliased``, ``_copied``: sequences by how they came to their tokens, those that came
  again after a preemption among them; ``_cached_slots``: slots that held something to begin with, in the end.
- ``stall_ms_per_1000_iterations`` and ``preempted`` with sharing.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

from vmm.benchmarks.trace_files import with_hash_ids
from vmm.simulate import Settings, Trace, replay

FIRST_REQUESTS = 3000
MEMORY_TOKENS = 3_000_000
BLOCK_TOKENS = 16
SPARE = 1.1  # of the memory for all tokens; and in each sequence so many tokens for the ends of its pages:
SPARE_TOKENS = 512

Metrics = dict[str, float]
SettingsFor = Callable[[int], Settings]  # so many bytes of K and V


def measure(
    progress: Callable[[str], None], traces: dict[str, Trace], settings_for: SettingsFor, of_gpu: Settings
) -> Metrics:
    """Raises InvalidArgument where no trace has hash ids."""
    token_bytes = of_gpu.model.kv_bytes_per_token
    found: dict[str, Metrics] = {}
    for name, whole in with_hash_ids(traces).items():
        trace = replace(whole, requests=whole.requests[:FIRST_REQUESTS])
        progress(f"{name} with memory for everything")
        found[name] = with_enough_memory(trace, settings_for, token_bytes, of_gpu.max_tokens)
        for prefix, settings in (("3m_", settings_for(MEMORY_TOKENS * token_bytes)), ("80gib_", of_gpu)):
            progress(f"{name} with memory for {settings.kv_bytes // token_bytes:,} tokens")
            metrics = beside_blocks(trace, settings)
            found[name] |= {prefix + key: value for key, value in metrics.items()}
    together = {key: _mean([each[key] for each in found.values()]) for key in next(iter(found.values()))}
    return {f"{name}_{key}": value for name, each in found.items() for key, value in each.items()} | together


def with_enough_memory(trace: Trace, settings_for: SettingsFor, token_bytes: int, max_tokens: int) -> Metrics:
    tokens = trace.prompt_tokens + trace.output_tokens + SPARE_TOKENS * len(trace.requests)
    found_tokens, looked_up = unlimited(trace, max_tokens)
    settings = settings_for(int(SPARE * (tokens - found_tokens)) * token_bytes)
    found = replay(trace, settings, "vmm-prefix").metrics
    ours, most = found["prefix_hit_fraction"], found_tokens / looked_up
    return {
        "prefix_hit_fraction": ours,
        "prefix_hit_fraction_unlimited": most,
        "prefix_hit_fraction_over_unlimited": _ratio(ours, most),
        "requests": found["completed"],
    }


def unlimited(trace: Trace, max_tokens: int) -> tuple[int, int]:
    """Of the prompts that can be served: the tokens, in whole blocks, with which an earlier one begins too;
    and all tokens."""
    nodes: dict[tuple[int, int], int] = {}  # of a tree: (the node before, a hash id)
    found = looked_up = 0
    for request in trace.requests:
        if not request.hash_ids or request.prompt_tokens + request.output_tokens > max_tokens:
            continue
        node = known = 0
        for id in request.hash_ids:
            known += (node, id) in nodes
            node = nodes.setdefault((node, id), len(nodes) + 1)
        looked_up += request.prompt_tokens
        most = min(known * request.block_tokens, request.prompt_tokens - 1)  # the last one's result is wanted
        found += most - most % BLOCK_TOKENS
    return found, looked_up


def beside_blocks(trace: Trace, settings: Settings) -> Metrics:
    """Beside each other: the core does not hold Python's lock."""
    names = ("vmm-prefix", "paged16-prefix", "vmm")
    with ThreadPoolExecutor(os.cpu_count()) as workers:
        runs = list(workers.map(lambda name: replay(trace, settings, name).metrics, names))
    ours, blocks, without = runs
    speed = "throughput_tokens_per_s"
    metrics = {
        "prefix_hit_fraction": ours["prefix_hit_fraction"],
        "lru_prefix_hit_fraction": blocks["prefix_hit_fraction"],
        "prefix_hit_fraction_over_lru": _ratio(ours["prefix_hit_fraction"], blocks["prefix_hit_fraction"]),
        "throughput_with_over_without": _ratio(ours[speed], without[speed]),
        "throughput_over_lru": _ratio(ours[speed], blocks[speed]),
        "stall_ms_per_1000_iterations": ours["stall_ms_per_1000_iterations"],
        "preempted": ours["preempted"],
    }
    return metrics | {key: value for key, value in ours.items() if key.startswith("prefixes_")}


def _ratio(ours: float, theirs: float) -> float:
    """1 where both are 0."""
    return ours / theirs if theirs else math.inf if ours else 1.0


def _mean(values: list[float]) -> float:
    if min(values) <= 0:
        return sum(values) / len(values)
    return math.exp(sum(map(math.log, values)) / len(values))
