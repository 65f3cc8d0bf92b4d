"""Three engines on one device in simulated time, each a tenant of one pool: does each get what it is
guaranteed, how soon, and what does that cost all of them together?

8 GiB, 128 KiB a token (Llama-3.1-8B) in pages of 2 MiB. ``steady`` (guaranteed 3 GiB) gets a request in
nine iterations; ``bursty`` (guaranteed 2 GiB) gets fourteen at once, unannounced, in every 400; ``greedy``,
which is guaranteed nothing and has a lower priority, admits whatever fits. A request has 100 to 999 tokens of
prompt and 20 to 219 of output. Who is refused memory beyond its guarantee preempts its last sequence; who is
refused within it insists. Every seed is run twice: with tenants, and with all of it nobody's. Zeroing takes
no simulated time; on a GPU we expect a microsecond a page.

Metrics, over all seeds; those of the run without tenants end in ``_without``.

- ``guarantee_violations``: steps that were refused although after them the engine would have kept no more
  than its guarantee. Of ``guaranteed_steps``, which asked for new pages within a guarantee.
- ``time_to_guarantee_ms``: the 99th percentile, over the guaranteed steps, of the time from when the step
  first asked until it had its pages; ``time_to_guarantee_max_ms``.
- ``unannounced_to_guarantee_ms``: the 99th percentile of ``bursty`` alone, over the steps that the pager had
  no chance to map ahead of: those that took more than a driver call.
- ``throughput_with_vs_without``: tokens of completed requests a second, of all engines together, with tenants
  ÷ without; ``greedy_``, ``steady_`` and ``bursty_throughput_with_vs_without``.
- ``preempted``: sequences, of all engines. ``pages_zeroed``: because they passed to another tenant.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from vmm import _core
from vmm.benchmarks.report import Report, environment, rounded

DEVICES = ("simulation",)

SEEDS, ITERATIONS = 8, 4000
_DRIVER_CALL_NS = 1000  # recording an event, which every step does


@dataclass
class _Sums:
    """Of all seeds, with tenants or without."""

    seconds: float = 0.0
    counts: Counter[str] = field(default_factory=Counter)
    tokens: Counter[str] = field(default_factory=Counter)
    to_guarantee_ns: list[int] = field(default_factory=list)
    unannounced_ns: list[int] = field(default_factory=list)

    def add(self, run: _core.Neighbours) -> None:
        self.seconds += run.now_ns / 1e9
        self.counts["pages_zeroed"] += run.pages_zeroed
        for engine in run.figures():
            self._add_engine(engine)

    def _add_engine(self, engine: dict[str, Any]) -> None:
        for name in ("steps", "refused", "violations", "preempted", "completed"):
            self.counts[name] += engine[name]
        self.tokens[engine["name"]] += engine["useful_tokens"]
        self.to_guarantee_ns += engine["to_guarantee_ns"]
        if engine["name"] == "bursty":
            self.unannounced_ns += [took for took in engine["to_guarantee_ns"] if took > _DRIVER_CALL_NS]

    def throughput(self, *engines: str) -> float:
        return sum(self.tokens[name] for name in engines or self.tokens) / self.seconds

    def metrics(self) -> dict[str, float]:
        return {
            "guarantee_violations": self.counts["violations"],
            "guaranteed_steps": len(self.to_guarantee_ns),
            "time_to_guarantee_ms": _p99_ms(self.to_guarantee_ns),
            "time_to_guarantee_max_ms": max(self.to_guarantee_ns, default=0) / 1e6,
            "unannounced_to_guarantee_ms": _p99_ms(self.unannounced_ns),
            "throughput_tokens_per_s": self.throughput(),
            "preempted": self.counts["preempted"],
            "pages_zeroed": self.counts["pages_zeroed"],
        }


def run(progress: Callable[[str], None], device: str) -> Report:
    report = Report("tenants", "simulation", environment=environment())
    report.peers = {"peer": "none: the same engines in one pool without tenants"}
    isolated, free = _Sums(), _Sums()
    for seed in range(1, SEEDS + 1):
        progress(f"seed {seed} of {SEEDS}")
        for sums, with_tenants in ((isolated, True), (free, False)):
            neighbours = _core.Neighbours(seed, isolated=with_tenants)
            neighbours.run(ITERATIONS)
            sums.add(neighbours)
    report.metrics = isolated.metrics()
    report.metrics |= {f"{name}_without": value for name, value in free.metrics().items()}
    report.metrics["throughput_with_vs_without"] = isolated.throughput() / free.throughput()
    for name in free.tokens:
        report.metrics[f"{name}_throughput_with_vs_without"] = isolated.throughput(name) / free.throughput(
            name
        )
    report.metrics = rounded(report.metrics.items(), digits=6)
    return report


def _p99_ms(times_ns: list[int]) -> float:
    """The smallest time that 99 in a hundred do not exceed; 0 where there are none."""
    return sorted(times_ns)[-(-99 * len(times_ns) // 100) - 1] / 1e6 if times_ns else 0.0
