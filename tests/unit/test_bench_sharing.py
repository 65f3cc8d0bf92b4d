"""``vmm bench sharing``, in small. No test asserts a time."""

import pytest

from vmm.benchmarks import sharing, step

# A token takes 8 KiB in the two layers of K and V, so that eight fill a page of 64 KiB.
TINY = sharing.Scale(
    layers=2,
    prompt=512,
    samples=8,
    sample_tokens=256,
    forks={"4k": 1024, "32k": 2048},
    rounds=2,
    running=256,
    steps=20,
)


@pytest.fixture(scope="module")
def report():
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(sharing, "WARM_UP_STEPS", 5)
        patched.setattr(sharing, "STEP_SECONDS", step.STEP_SECONDS / 5)
        return sharing.run(lambda stage: None, "cpu", TINY)


def test_sharing_saves_the_memory_of_the_prompt(report):
    for ending in ("", "_2mib"):
        ideal = report.metrics[f"parallel_memory_over_ideal{ending}"]
        assert 1 <= ideal <= 1.1
        assert report.metrics[f"parallel_saved_gib{ending}"] == pytest.approx(7 * 512 * 8 / 2**20, rel=0.01)
        assert report.metrics[f"parallel_samples{ending}"] == 8
    without = report.peers["without_sharing_over_ideal"]
    assert without == pytest.approx(8 * (512 + 256) / (512 + 8 * 256), rel=0.01)
    assert report.environment["skipped"] == "nothing"


def test_forks_copies_and_steps_are_measured(report):
    for ending in ("", "_2mib"):
        assert report.metrics[f"fork_us_per_page{ending}"] > 0
        assert report.metrics[f"fork_4k_used_slot{ending}_ms"] > 0
        for tokens in ("4k", "32k"):
            fork, copy = (
                report.metrics[f"fork_{tokens}{ending}_ms"],
                report.peers[f"copy_{tokens}{ending}_ms"],
            )
            assert fork > 0
            assert report.metrics[f"fork_over_copy_{tokens}{ending}"] == pytest.approx(fork / copy, rel=0.01)
    for ending in ("4k", "32k", "4k_2mib", "32k_2mib"):
        copy_us = 1e3 * report.peers[f"copy_{ending}_ms"]
        for way in ("adopt", "alias"):  # whether a copy is cheaper depends on the machine
            took = report.metrics[f"attach_{way}_us_{ending}"]
            assert took > 0
            over = report.metrics[f"attach_{way}_over_copy_{ending}"]
            assert over == pytest.approx(took / copy_us, rel=0.01)
    pages = 1024 * 8 // 64
    of_all = report.metrics["fork_us_per_page"] * pages / 1e3
    assert of_all == pytest.approx(report.metrics["fork_4k_ms"], rel=0.01)
    for ending in ("", "_p50"):
        quotient = report.metrics[f"step_us_256_forked{ending}"] / report.metrics[f"step_us_256{ending}"]
        assert report.metrics[f"step_forked_ratio{ending}"] == pytest.approx(quotient, rel=0.01)


def test_short_memory_takes_fewer_samples_and_layers_and_says_so(monkeypatch):
    monkeypatch.setattr(sharing, "WARM_UP_STEPS", 1)
    monkeypatch.setattr(sharing, "_available_bytes", lambda device: 2**22)
    monkeypatch.setattr(sharing, "ENOUGH_BYTES", 2**23)
    scale = sharing.Scale(**{**vars(TINY), "steps": 2})
    found = sharing.run(lambda stage: None, "cpu", scale)
    assert found.metrics["parallel_samples"] == 4
    assert found.environment["skipped"].startswith("4 of 8 samples")
    assert "1 of 2 layers of 32k" in found.environment["skipped"]
    assert "tokens of the prompt in step_us_256" in found.environment["skipped"]
