"""Random courses of the engine in simulated time, everything checked after every iteration.

``VMM_SEED=7`` runs that seed alone; ``VMM_SECONDS=600`` runs fresh seeds for so long.
"""

import os
import random
from time import monotonic

import pytest

from vmm import InvariantViolation, _core

SEEDS = 300
ITERATIONS = 450
ENGINE_STEPS = 100_000


def run(seed, iterations=ITERATIONS, check=True):
    """What happened; a violation says how to replay it alone."""
    course = _core.Course(seed, check=check)
    try:
        course.run(iterations)
        course.rest()
    except InvariantViolation as violation:
        replay = f"VMM_SEED={seed} python -m pytest tests/simulation/test_courses.py -k violated"
        pytest.fail(f"{violation}\nreplay: {replay}", pytrace=False)
    return course.totals()


def chosen_seeds():
    """The seed that is asked for, fresh ones for so long as is asked for, or the first few."""
    if "VMM_SEED" in os.environ:
        yield int(os.environ["VMM_SEED"])
    elif "VMM_SECONDS" in os.environ:
        until = monotonic() + float(os.environ["VMM_SECONDS"])
        while monotonic() < until:
            yield random.getrandbits(63)
    else:
        yield from range(1, SEEDS + 1)


def test_nothing_is_ever_violated():
    counted = "steps refused preempted failures opens forks attached rests tenants within"
    tiers = "parked woken restored lost tier_failures pages_out pages_back"
    totals = dict.fromkeys(f"{counted} {tiers}".split(), 0)
    seeds = 0
    for seed in chosen_seeds():
        ran = run(seed)
        seeds += 1
        for name in totals:
            totals[name] += ran[name]
    print(f"{seeds} seeds:", ", ".join(f"{count} {name}" for name, count in totals.items()))
    if not {"VMM_SEED", "VMM_SECONDS"} & os.environ.keys():
        assert totals["steps"] >= ENGINE_STEPS
        assert all(totals[name] > (100 if name == "rests" else 1000) for name in counted.split())
        assert all(totals[name] > 50 for name in tiers.split())
        assert totals["attached"] >= totals["steps"] // 50


def test_a_violation_says_how_to_replay_it(monkeypatch):
    class Violated:
        def __init__(self, seed, check):
            self.seed = seed

        def run(self, iterations):
            raise InvariantViolation(f"seed {self.seed}, iteration 5: the sky fell")

    monkeypatch.setattr(_core, "Course", Violated)
    with pytest.raises(pytest.fail.Exception, match=r"iteration 5: the sky fell\nreplay: VMM_SEED=9 "):
        run(9)


def test_a_seed_replays():
    assert run(3) == run(3)
    assert run(3)["digest"] != run(4)["digest"]


def test_a_course_is_the_same_unchecked():
    assert run(5, check=False) == run(5)


def test_a_plain_course_is_never_refused():
    course = _core.Course(1, plain=True)
    course.run(500)
    course.rest()
    totals = course.totals()
    assert totals["iterations"] == 500
    assert totals["steps"] == 500
    assert totals["refused"] == totals["failures"] == totals["preempted"] == 0
    assert totals["opens"] > 64
    assert totals["pages_mapped"] > 1000
