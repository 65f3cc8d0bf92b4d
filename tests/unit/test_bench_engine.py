"""``vmm bench engine`` and ``step``, in small. No test asserts a time."""

from vmm.benchmarks import engine, step


def test_an_engine_that_preempts_gives_the_same_tokens(monkeypatch):
    monkeypatch.setattr(engine, "REQUESTS", 14)
    monkeypatch.setattr(engine, "BUDGET", 32 * 2**16)
    metrics = engine.run(lambda stage: None, "cpu").metrics
    assert metrics["tokens_identical"] == 1
    assert metrics["preempted"] > 0
    assert 0 < metrics["fragmentation"] < 1
    assert 0 <= metrics["stall_fraction_of_time"] < 1


def test_a_step_is_measured(monkeypatch):
    monkeypatch.setattr(step, "STEPS", 50)
    monkeypatch.setattr(step, "GROWING_STEPS", 40)
    monkeypatch.setattr(step, "WARM_UP_STEPS", 10)
    metrics = step.run(lambda stage: None, "cpu").metrics
    for name in ("step_us_256", "step_us_4096", "step_us_256_growing", "step_us_256_growing_after_sleep"):
        assert 0 < metrics[name] <= 50 * metrics[f"{name}_p99"]
    assert 0 <= metrics["caller_mapped_fraction_growing"] <= 1
    assert metrics["bytes_per_sequence"] > 0
