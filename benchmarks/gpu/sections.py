"""What the GPU script does, the most valuable first, and what of it is a failure."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from time import monotonic
from typing import Any

from benchmarks.gpu.clock import Deadline
from benchmarks.gpu.crew import Crew, Item

Items = dict[str, Item]
_HUNG_OR_CRASHED = ("died", "timed out")


@dataclass
class Outcome:
    """``status``: passed, failed (of correctness), measured, cut short or not run."""

    name: str
    status: str = "not run"
    reason: str = ""
    seconds: float = 0.0
    failures: list[str] = field(default_factory=list)
    items: Items = field(default_factory=dict)


@dataclass
class Section:
    """``judge`` names what is wrong; ``checks``: something was proved when nothing is; ``stands_on``: the
    section without which it makes no sense."""

    name: str
    crew: Crew
    budget_s: float
    judge: Callable[[Items], list[str]]
    checks: bool = True
    stands_on: str = ""

    def run(self, deadline: Deadline) -> Outcome:
        outcome = Outcome(self.name)
        if deadline.over:
            outcome.reason = "no time was left"
            return outcome
        start = monotonic()
        outcome.items = self.crew.run(deadline.within(self.budget_s))
        outcome.seconds = round(monotonic() - start, 1)
        outcome.failures = self.judge(outcome.items)
        states = {item["status"] for item in outcome.items.values()}
        reasons = {item.get("error", "") for item in outcome.items.values() if item["status"] != "ok"}
        outcome.reason = "; ".join(sorted(reasons - {""}))[:300] if states != {"ok"} else ""
        if outcome.failures:
            outcome.status = "failed"
        elif states <= {"skipped"}:
            outcome.status = "not run"
        elif "cut short" in states or (not self.checks and states & {"timed out"}):
            outcome.status = "cut short"
        else:
            outcome.status = "passed" if self.checks else "measured"
        return outcome


def _broken(items: Items) -> list[str]:
    """Whatever did not end well."""
    return [
        f"{name}: {item['status']}: {item.get('error', '')}"
        for name, item in items.items()
        if item["status"] in ("error", *_HUNG_OR_CRASHED)
    ]


def _differences(items: Items) -> list[str]:
    found = _broken(items)
    for name, item in items.items():
        result = item.get("result") or {}
        found += [
            f"{name}: {step['call']}: expected {_text(step['expected'])}, got {step['actual']}"
            for step in result.get("differences", ())
        ]
        found += [f"{name}: stopped: {result['stopped']}"] if "stopped" in result else []
    return found


def _text(expected: list[int]) -> str:
    return " or ".join(map(str, expected))


def _wrong_results(items: Items) -> list[str]:
    """Probes may crash, hang and be refused: that is what they are there to find out. Not so wrong data."""
    return [
        f"{name}: {item['error']}"
        for name, item in items.items()
        if item["status"] == "error" and item["kind"] in ("WrongData", "Mismatch")
    ]


def _bench_failures(items: Items) -> list[str]:
    """All but running out of time."""
    return [
        f"{name}: {item['status']}: {item.get('error', '')}"
        for name, item in items.items()
        if item["status"] in ("error", "died")
    ]


def sections(build: bool = True) -> list[Section]:
    def crew(module: str, each_s: float, **options: Any) -> Crew:
        return Crew(f"benchmarks.gpu.{module}", each_s, built=build, **options)

    def bench(name: str, budget_s: float) -> Section:
        alone = crew("bench_items", budget_s, only=name)
        return Section(name, alone, budget_s, _bench_failures, checks=False, stands_on="build")

    made = [
        Section("build", crew("build", 240), 240, _broken),
        Section("conformance", crew("conformance_items", 20), 60, _differences),
        Section("gpu tests", crew("gpu_test_items", 30), 120, _broken, stands_on="build"),
        Section("probes", crew("probes", 40, separate=True), 110, _wrong_results, checks=False),
        bench("attention", 150),
        bench("map", 80),
        bench("growth", 80),
    ]
    return made if build else made[1:]
