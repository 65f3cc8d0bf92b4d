"""Engines that are one process, compared with stock."""

import engine
import pytest

WORK = [["generate", 0, 48, 200], ["look", "busy"], ["generate", 0, 48, 20]]


@pytest.fixture(scope="module")
def stock():
    return engine.run({"steps": WORK})


def test_the_tokens_can_tell_wrong_contents_from_right_ones(stock):
    first = stock["tokens"][0]
    assert len({tuple(tokens) for tokens in first}) == len(first)
    assert sum(len(set(tokens)) > 20 for tokens in first) > len(first) // 2


def test_with_ample_memory_all_is_as_with_stock(stock):
    job = {"steps": [*WORK, ["sleep", 2], ["look", "idle"]], "connector": engine.connector(idle="500ms")}
    ours = engine.run(job)
    assert ours["tokens"] == stock["tokens"], ours["log"]
    assert ours["metrics"].items() >= stock["metrics"].items()
    assert ours["metrics"]["vllm:vmm_mapped_bytes"] > 0
    assert ours["metrics"]["vllm:vmm_live_bytes"] == 0, "what the last step of an engine says stays"
    assert ours["metrics"]["vllm:num_preemptions"] == 0
    busy, idle = ours["looks"]["busy"], ours["looks"]["idle"]
    assert busy["figures"][0]["mapped_bytes"] > 10 << 20
    assert idle["figures"][0]["mapped_bytes"] <= 0.05 * busy["figures"][0]["mapped_bytes"]
    assert idle["usage"] == 0


def test_a_cap_preempts_and_changes_nothing_else(stock):
    job = {
        "steps": [
            *WORK,
            ["reset"],
            ["look", "reset"],
            ["generate", 0, 4, 20],
            ["nap"],
            ["generate", 0, 4, 20],
        ],
        "connector": engine.connector(budget="4MiB"),
    }
    ours = engine.run(job)
    assert ours["tokens"][:2] == stock["tokens"], ours["log"]
    assert ours["tokens"][2] == ours["tokens"][3] == [tokens[:20] for tokens in stock["tokens"][0][:4]]
    assert ours["metrics"]["vllm:num_preemptions"] > 0
    assert ours["looks"]["busy"]["figures"][0]["mapped_bytes"] <= 4 << 20
    assert ours["looks"]["busy"]["usage"] == 0
    assert ours["resets"] == [True]
    for look in ("reset", "asleep"):
        assert ours["looks"][look]["figures"][0]["mapped_bytes"] <= 256 << 10


def test_a_budget_below_one_request_says_what_to_change():
    said = engine.run_failing({"steps": [], "connector": engine.connector(budget="512KiB")})
    assert "raise it to at least" in said
    assert "--max-model-len" in said
