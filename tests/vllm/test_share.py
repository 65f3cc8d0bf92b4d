"""Two engines that share a device's memory."""

import os
import signal
import time

import engine
import pytest

WORK = ["generate", 0, 48, 200]


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("VMM_SHARE_DIR", str(tmp_path))


def options(**more):
    return engine.connector(**({"budget": "8MiB", "share": "both", "minimum": "3MiB", "idle": "60s"} | more))


def test_an_idle_engine_gives_way_and_a_dead_one_leaves_everything(tmp_path):
    """The first engine fills the share and stays idle, for so long that idleness alone would give nothing
    back. The second needs more than is left."""
    stock = engine.run({"steps": [WORK]})
    ready = tmp_path / "ready"
    first = engine.start(
        {"steps": [WORK, ["look", "busy"], ["touch", str(ready)], ["sleep", 1000]], "connector": options()}
    )
    until = time.monotonic() + engine.LIMIT_S
    while not ready.exists():
        assert first.poll() is None, engine.finish(first)
        assert time.monotonic() < until
        time.sleep(0.1)
    killed = tmp_path / "killed"
    second = engine.start(
        {
            "steps": [
                WORK, ["look", "beside"], ["touch", str(killed)], ["sleep", 3], WORK, ["look", "alone"],
            ],
            "connector": options(),
        }
    )  # fmt: skip
    while not killed.exists():
        assert second.poll() is None, engine.finish(second)
        assert time.monotonic() < until + engine.LIMIT_S
        time.sleep(0.1)
    os.killpg(first.pid, signal.SIGKILL)
    first.communicate()
    ours = engine.finish(second)
    assert "error" not in ours, ours["error"]
    assert ours["tokens"] == stock["tokens"] * 2
    beside = ours["looks"]["beside"]["figures"][0]
    alone = ours["looks"]["alone"]["figures"][0]
    assert beside["granted_bytes"] > 3 << 20  # the first was asked for what it did not use
    assert alone["granted_bytes"] > 7 << 20


def test_a_minimum_below_one_request_says_what_to_change():
    said = engine.run_failing({"steps": [], "connector": options(minimum="512KiB")})
    assert "'minimum' is 512.0 KiB" in said
    assert "raise it to at least" in said
