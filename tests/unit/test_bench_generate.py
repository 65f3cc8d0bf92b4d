"""``vmm bench generate``, in small. No test asserts a time."""

import json

import pytest

from vmm.benchmarks import generate

# Pages of 64 KiB hold 256 tokens, here as in full.
TINY = generate.Scale(
    window=1024, sliding_tokens=4096, heads=2, beams=4, prompt=1000, new_tokens=8, hidden=64, layers=2
)


@pytest.fixture(scope="module")
def report():
    return generate.run(lambda stage: None, "cpu", beams=True, scale=TINY)


def test_the_window_is_what_is_resident(report):
    # Five pages of each head for 1,024 tokens that fill four, and none ahead.
    assert report.metrics["sliding_resident_over_window"] == 1.25
    assert report.metrics["sliding_states_identical"] == 1
    quotient = report.peers["dynamic_sliding_update_us"] / report.peers["vmm_sliding_update_us"]
    assert report.metrics["sliding_speedup"] == pytest.approx(quotient, rel=0.01)


def test_beams_share_the_prompt_and_find_the_same_tokens(report):
    assert report.metrics["beams_tokens_identical"] == 1
    # Three whole pages of four are shared: (3 + 4) pages of 256 tokens ÷ 4 x 1,007 tokens.
    assert report.metrics["beams_memory_ratio"] == pytest.approx(7 * 256 / (4 * 1007), rel=0.01)
    assert report.metrics["beams_memory_over_ideal"] > 1
    assert report.metrics["beams_time_ratio"] > 0
    assert report.metrics["beams_step_ratio"] > 0


def test_without_beams_only_the_window_is_measured(monkeypatch):
    monkeypatch.setattr(generate, "_beams", None)
    found = json.loads(generate.run(lambda stage: None, "cpu", scale=TINY).to_json())
    assert not any(name.startswith("beams") for name in found["metrics"])
    assert found["bench"] == "generate"
