"""``vmm bench engine`` and ``step``, in small. No test asserts a time."""

import subprocess

import pytest

from vmm.benchmarks import engine, step


def test_an_engine_that_preempts_gives_the_same_tokens(monkeypatch):
    monkeypatch.setattr(engine, "REQUESTS", 14)
    monkeypatch.setattr(engine, "BUDGET", 32 * 2**16)
    metrics = engine.run(lambda stage: None, "cpu").metrics
    assert metrics["tokens_identical"] == 1
    assert metrics["preempted"] > 0
    assert 0 < metrics["fragmentation"] < 1
    assert 0 <= metrics["stall_fraction_of_time"] < 1


@pytest.fixture
def small(monkeypatch):
    for name, count in (("STEPS", 50), ("GROWING_STEPS", 40), ("WARM_UP_STEPS", 10)):
        monkeypatch.setattr(step, name, count)


def test_a_step_is_measured(small):
    metrics = step.run(lambda stage: None, "cpu").metrics
    for name in ("step_us_256", "step_us_4096", "step_us_256_growing", "step_us_256_growing_after_sleep"):
        assert 0 < metrics[name] <= 50 * metrics[f"{name}_p99"]
    assert 0 <= metrics["caller_mapped_fraction_growing"] <= 1
    assert metrics["bytes_per_sequence"] > 0


def test_a_step_is_measured_beside_processes_that_compute(small, monkeypatch):
    started, computing = [], []

    class Process(subprocess.Popen):
        def __init__(self, command, **options):
            super().__init__(command, **options)
            if "while True" in command[-1]:  # git is asked, too
                started.append(self)

    def progress(stage):
        computing.append([process.poll() for process in started])

    monkeypatch.setattr(subprocess, "Popen", Process)
    metrics = step.run(progress, "cpu", busy=True).metrics
    assert len(computing) == 5
    assert computing == [[None, None]] * 5
    assert all(process.returncode is not None for process in started)
    assert all(name.endswith("_busy") for name in metrics)
    quotient = metrics["step_us_256_growing_busy"] / metrics["any_call_us_busy"]
    assert metrics["step_us_256_growing_over_any_call_busy"] == pytest.approx(quotient, rel=0.01)
    assert 0 <= metrics["caller_mapped_fraction_growing_busy"] <= 1
