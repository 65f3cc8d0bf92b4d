"""How long arms take, each once per round so that a noisy moment hits all alike: by the GPU's own events, or
by the wall on a CPU."""

from __future__ import annotations

import statistics
from collections.abc import Callable

import torch

from vmm.benchmarks.report import interleaved

Arms = dict[str, Callable[[], object]]


Timer = Callable[[Arms, int], dict[str, float]]
"""The median seconds of each arm, in so many rounds."""


class CudaTimer:
    """Between events on the current stream. Before each, ``flush_bytes`` are overwritten: the cache holds
    nothing of the arm then, and the CPU has time to be ahead with its launches."""

    def __init__(self, flush_bytes: int) -> None:
        self._flush = torch.empty(flush_bytes, dtype=torch.uint8, device="cuda")

    def __call__(self, arms: Arms, rounds: int) -> dict[str, float]:
        pairs: dict[str, list[tuple[torch.cuda.Event, torch.cuda.Event]]] = {name: [] for name in arms}
        for _ in range(rounds):
            for name, work in arms.items():
                start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
                self._flush.zero_()
                start.record()
                work()
                end.record()
                pairs[name].append((start, end))
        torch.cuda.synchronize()
        return {
            name: statistics.median(start.elapsed_time(end) for start, end in found) / 1e3
            for name, found in pairs.items()
        }


def timer_for(device: str, flush_bytes: int) -> Timer:
    """On a CPU the wall's: work is over there when its call returns."""
    return interleaved if device == "cpu" else CudaTimer(flush_bytes)
