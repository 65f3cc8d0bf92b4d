"""One trace, replayed with one allocator, in simulated time."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

from vmm import _core
from vmm.errors import InvalidArgument
from vmm.simulate.allocators import ALLOCATORS, SHARING_PREFIXES
from vmm.simulate.settings import WATERMARK, Settings
from vmm.simulate.traces import Trace

ITERATIONS_BETWEEN_REPORTS = 2000
MOST_TOKENS = 2**31  # different ones: the core has 32 bits for each
SAMPLES = 1000  # of memory over time, about


class Sample(NamedTuple):
    """The memory and the requests at one simulated time."""

    at_ms: float  #: since the first arrival
    live_bytes: int  #: of K and V of the tokens that there are
    held_bytes: int  #: by running sequences, announced prompts and look-ahead
    mapped_bytes: int
    reclaimable_bytes: int
    running: int  #: requests
    waiting: int  #: requests
    stalled_ms: float  #: until then


@dataclass(frozen=True)
class Replayed:
    """``metrics``: numbers, defined in docs/simulate.md. ``samples``: about a thousand over the time."""

    allocator: str
    metrics: dict[str, float]
    samples: list[Sample]


def replay(
    trace: Trace, settings: Settings, allocator: str, progress: Callable[[int], None] = lambda over: None
) -> Replayed:
    """Serves ``trace`` until its last request is over. ``progress`` is told how many requests are over.
    Deterministic. Raises KeyError for an allocator that is neither in ``ALLOCATORS`` nor in
    ``SHARING_PREFIXES``."""
    requests = [(round(1e9 * r.arrival_s), r.prompt_tokens, r.output_tokens) for r in trace.requests]
    memory = (ALLOCATORS | SHARING_PREFIXES)[allocator](settings)
    run = _core.Replay(
        requests,
        settings.roofline,
        memory,
        batch_tokens=settings.batch_tokens,
        max_tokens=settings.max_tokens,
        watermark=WATERMARK,
        sample_every_ns=max(1, round(1e9 * trace.duration_s / SAMPLES)),
        prompts=_prompts(trace) if allocator in SHARING_PREFIXES else (),
    )
    while run.run(ITERATIONS_BETWEEN_REPORTS):
        progress(run.over)
    progress(run.over)
    samples = [
        Sample(at_ns / 1e6, live, held, mapped, reclaimable, running, waiting, stalled_ns / 1e6)
        for at_ns, live, held, mapped, reclaimable, running, waiting, stalled_ns in run.samples()
    ]
    metrics = _metrics(run.figures(), settings)
    if allocator in SHARING_PREFIXES and isinstance(memory, _core.VmmMemory):
        metrics |= {f"prefixes_{name}": count for name, count in memory.prefixes().items()}
    return Replayed(allocator, metrics, samples)


def _prompts(trace: Trace) -> list[tuple[int, list[int]]]:
    """For each request the tokens of a block, and the first token of each block. Token i of block h is
    h × (tokens of a block) + i."""
    requests = trace.requests
    apart = max(each.block_tokens for each in requests)
    most = max((max(each.hash_ids) for each in requests if each.hash_ids), default=0)
    if (most + 1) * apart >= MOST_TOKENS:
        raise InvalidArgument(
            f"{trace.name} has {most + 1} different blocks of {apart} tokens; expected fewer than 2^31 tokens"
        )
    return [(each.block_tokens, [apart * id for id in each.hash_ids]) for each in requests]


def _metrics(figures: dict[str, Any], settings: Settings) -> dict[str, float]:
    seconds = figures["over_at_ns"] / 1e9
    tokens = figures["prompt_tokens"] + figures["output_tokens"]
    first, last = sorted(figures["to_first_token_ns"]), sorted(figures["to_last_token_ns"])
    found: dict[str, float] = {
        name: figures[name]
        for name in ("completed", "rejected", "preempted", "iterations", "prompt_tokens", "output_tokens")
    }
    found |= {
        "duration_ms": 1e3 * seconds,
        "throughput_tokens_per_s": _ratio(figures["output_tokens"], seconds),
        "ttft_p50_ms": _percentile(first, 50) / 1e6,
        "ttft_p99_ms": _percentile(first, 99) / 1e6,
        "latency_p50_ms": _percentile(last, 50) / 1e6,
        "latency_p99_ms": _percentile(last, 99) / 1e6,
        "peak_sequences": figures["most_running"],
        "mean_sequences": _ratio(figures["running_seconds"], seconds),
        "computed_over_needed": _ratio(figures["computed_tokens"], tokens - figures["completed"]),
        "stall_ms_per_1000_iterations": _ratio(figures["stalled_ns"] / 1e3, figures["iterations"]),
        "longest_stall_ms": figures["longest_stall_ns"] / 1e6,
        "fragmentation": 1 - _ratio(figures["live_seconds"], figures["held_seconds"], 1),
        "mean_held_bytes": _ratio(figures["held_seconds"], seconds),
        "mean_reclaimable_bytes": _ratio(figures["reclaimable_seconds"], seconds),
        "held_byte_seconds": figures["held_seconds"],
        "live_byte_seconds": figures["live_seconds"],
    }
    if figures["looked_up_tokens"]:
        found |= {
            "looked_up_tokens": figures["looked_up_tokens"],
            "found_tokens": figures["found_tokens"],
            "prefix_hit_fraction": figures["found_tokens"] / figures["looked_up_tokens"],
        }
    if figures["pages_mapped"]:
        used = figures["pages_first_used"]
        found |= {
            "pages_mapped": figures["pages_mapped"],
            "pages_first_used": used,
            "pages_late": figures["pages_late"],
            "hide_ratio": 1 - _ratio(figures["pages_late"], used),
            "pages_mapped_per_1000_tokens": 1000 * _ratio(figures["pages_mapped"], tokens),
            "pages_without_reuse": figures["bytes_opened"] // settings.page_bytes,
        }
    return found


def _ratio(part: float, whole: float, if_none: float = 0.0) -> float:
    return part / whole if whole else if_none


def _percentile(ascending: list[int], percent: int) -> float:
    """The smallest of the numbers that ``percent`` in a hundred do not exceed; 0 where there are none."""
    return ascending[max(0, -(-percent * len(ascending) // 100) - 1)] if ascending else 0.0
