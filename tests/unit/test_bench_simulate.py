"""``vmm bench simulate``, in small. No test asserts a time."""

from vmm.benchmarks import simulate


def test_courses_are_run_until_there_are_enough_steps(monkeypatch):
    monkeypatch.setattr(simulate, "STEPS", 200)
    monkeypatch.setattr(simulate, "WARM_UP_STEPS", 10)
    monkeypatch.setattr(simulate, "ENGINE_STEPS", 2_000)
    monkeypatch.setattr(simulate, "TIER_STEPS", 500)
    monkeypatch.setattr(simulate, "ITERATIONS", 300)
    monkeypatch.setattr(simulate, "SEEDS_AT_ONCE", 4)
    stages = []
    report = simulate.run(stages.append, "cpu")
    assert report.metrics["violations"] == report.metrics["tiers_violations"] == 0
    assert report.metrics["tiers_engine_steps"] >= 500
    assert report.metrics["pages_from_tiers"] > 0
    assert report.metrics["engine_steps"] >= 2_000
    assert 1 < report.metrics["seeds_run"] < 30
    assert report.metrics["steps_per_second"] > 0
    assert report.peers["peer"].startswith("none")
    assert report.metrics["prefixes_attached"] > 0
    assert len(stages) > 2


def test_violations_are_counted_and_told(monkeypatch):
    class Violated:
        def __init__(self, seed, *, tiers):
            self.seed, self.has_tiers = seed, tiers and seed > 2

        def run(self, iterations):
            if self.seed == 1:
                raise simulate.InvariantViolation("seed 1, iteration 5: the sky fell")

        def rest(self):
            pass

        def totals(self):
            return {"steps": 1_000, "refused": 0, "failures": 0}

    monkeypatch.setattr(simulate._core, "Course", Violated)
    monkeypatch.setattr(simulate, "ENGINE_STEPS", 2_000)
    monkeypatch.setattr(simulate, "TIER_STEPS", 2_000)
    stages = []
    monkeypatch.setattr(simulate, "SEEDS_AT_ONCE", 2)
    found = simulate._violations(stages.append)
    assert (found["violations"], found["seeds_run"], found["engine_steps"]) == (1, 2, 2_000)
    assert (found["tiers_violations"], found["tiers_seeds_run"]) == (0, 2)
    assert "seed 1, iteration 5: the sky fell" in stages
