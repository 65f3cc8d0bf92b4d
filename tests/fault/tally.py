"""What the fault suites did, for the line that conftest.py ends them with."""

import os
from collections import Counter

from core_pool import settle

injected: Counter[str] = Counter()
"""Failures, by suite."""
unreached: dict[str, list[str]] = {}
"""By suite: what was never made to fail. A suite that is not here was not run to its end."""
leaks = 0


def leaked(what: object) -> None:
    """Something was left behind: counted, and the test fails."""
    global leaks  # noqa: PLW0603
    leaks += 1
    raise AssertionError(f"left behind: {what}")


def end(pool, memfd: int | None = None) -> None:
    """Closes the pool, which must give everything back."""
    pool.close()
    settle(pool)
    pool.trim(1 << 40)
    left = {"created": pool.stats()["created_bytes"], "taken": pool.budget.taken_bytes}
    if memfd is not None:
        left["committed"] = os.fstat(memfd).st_blocks
    if any(left.values()):
        leaked(left)


def each_failure(attempt, least: int) -> None:
    """Calls ``attempt(1)``, ``attempt(2)``, …, each of which makes that driver call fail and returns what has
    failed, until one returns nothing: the scenario makes fewer calls. It must make ``least`` of them."""
    for n in range(1, 1000):
        if not attempt(n):
            assert n > least, "too few driver calls were made to fail"
            return
        injected["host"] += 1
    raise AssertionError("the scenario does not end")


def summary() -> str | None:
    """None where not all suites ran to their end. An abort ends the run, and there is no line then."""
    if set(unreached) != {"cuda", "host"}:
        return None
    missing = sum(map(len, unreached.values()))
    return f"{injected.total()} injected failures, {leaks} leaks, 0 aborts, {missing} call sites unreached"
