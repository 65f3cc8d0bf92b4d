"""What the GPU script does, the most valuable first, and what of it is a failure."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from time import monotonic
from typing import Any

from benchmarks.gpu.clock import Deadline
from benchmarks.gpu.crew import UNDER_WAY, Crew, Item

Items = dict[str, Item]


@dataclass
class Outcome:
    """``status``: passed, failed (of correctness), measured, cut short, not run, or under way."""

    name: str
    status: str = "not run"
    reason: str = ""
    seconds: float = 0.0
    failures: list[str] = field(default_factory=list)
    items: Items = field(default_factory=dict)


@dataclass
class Section:
    """``judge`` names what is wrong; ``checks``: something was proved when nothing is; ``stands_on``: the
    section without which it makes no sense. It takes ``budget_s`` at most, and ``least_s`` are kept for it
    while those before it run."""

    name: str
    crew: Crew
    budget_s: float
    judge: Callable[[Items], list[str]]
    checks: bool = True
    stands_on: str = ""
    least_s: float = 0

    def run(self, deadline: Deadline, outcome: Outcome, changed: Callable[[], object] = lambda: None) -> None:
        """Fills ``outcome``; calls ``changed`` whenever it has. Where it is stopped, it says what it had."""
        if deadline.over:
            outcome.reason = "no time was left"
            return
        outcome.status = UNDER_WAY
        start = monotonic()
        try:
            self.crew.run(deadline.within(self.budget_s), outcome.items, changed)
        finally:
            outcome.seconds = round(monotonic() - start, 1)
            self._say_what_became_of(outcome)

    def _say_what_became_of(self, outcome: Outcome) -> None:
        outcome.failures = self.judge(outcome.items)
        states = {item["status"] for item in outcome.items.values()}
        reasons = {item.get("error", "") for item in outcome.items.values() if item["status"] != "ok"}
        outcome.reason = "; ".join(sorted(reasons - {""}))[:300] if states != {"ok"} else ""
        if outcome.failures:
            outcome.status = "failed"
        elif states <= {"skipped"}:
            outcome.status = "not run"
        elif states & {"cut short", UNDER_WAY} or (not self.checks and "timed out" in states):
            outcome.status = "cut short"
        else:
            outcome.status = "passed" if self.checks else "measured"


def _ended(items: Items, *states: str) -> list[str]:
    return [
        f"{name}: {item['status']}: {item.get('error', '')}"
        for name, item in items.items()
        if item["status"] in states
    ]


def _broken(items: Items) -> list[str]:
    """Whatever did not end well."""
    return _ended(items, "error", "died", "timed out")


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
        if item["status"] == "error" and item.get("kind") in ("WrongData", "Mismatch")
    ]


def _bench_failures(items: Items) -> list[str]:
    """All but running out of time."""
    return _ended(items, "error", "died")


def sections(build: bool = True) -> list[Section]:
    def crew(module: str, each_s: float, **options: Any) -> Crew:
        return Crew(f"benchmarks.gpu.{module}", each_s, built=build, **options)

    def bench(name: str, budget_s: float, least_s: float) -> Section:
        alone = crew("bench_items", budget_s, only=name)
        return Section(
            name, alone, budget_s, _bench_failures, checks=False, stands_on="build", least_s=least_s
        )

    def asked(
        name: str, module: str, each_s: float, budget_s: float, least_s: float, **options: Any
    ) -> Section:
        asking = crew(module, each_s, **options)
        return Section(name, asking, budget_s, _wrong_results, checks=False, least_s=least_s)

    made = [
        Section("build", crew("build", 200), 200, _broken),
        Section("conformance", crew("conformance_items", 20), 60, _differences, least_s=20),
        asked("questions", "questions", 20, 100, least_s=20),
        Section("gpu tests", crew("gpu_test_items", 60), 120, _broken, stands_on="build", least_s=40),
        asked("probes", "probes", 40, 120, least_s=40, separate=True),
        bench("map", 80, least_s=40),
        bench("attention", 150, least_s=60),
        bench("growth", 80, least_s=30),
    ]
    return made if build else made[1:]
