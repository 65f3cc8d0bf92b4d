"""Engines whose scheduler and workers are processes of their own, compared with stock."""

import engine
import pytest

WORK = [["generate", 0, 48, 100], ["sleep", 1.5], ["generate", 0, 48, 20]]


@pytest.mark.parametrize("workers", [1, 2])
def test_tokens_and_hits_are_stocks(workers):
    options = {"tensor_parallel_size": workers}
    stock = engine.run({"steps": WORK, "engine": options}, processes=True)
    for budget, idle in (("32MiB", "60s"), ("3MiB", "500ms")):
        ours = engine.run(
            {"steps": WORK, "engine": options, "connector": engine.connector(budget=budget, idle=idle)},
            processes=True,
        )
        assert ours["tokens"] == stock["tokens"], ours["log"]
        if budget == "32MiB":
            assert ours["metrics"].items() >= stock["metrics"].items()
            assert ours["metrics"]["vllm:num_preemptions"] == 0
        else:
            assert ours["metrics"]["vllm:num_preemptions"] > 0
