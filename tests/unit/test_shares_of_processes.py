"""Real processes in one share: they press each other, and are killed at any moment."""

import subprocess
import sys
import time
from pathlib import Path

import pytest

import vmm
from vmm.benchmarks.share_process import Process

MIB = 2**20
BUDGET = 64 * MIB


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("VMM_SHARE_DIR", str(tmp_path))
    return tmp_path


def until(true, seconds=30):
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it does not happen"
        time.sleep(0.005)


def test_the_idle_gives_what_it_does_not_need():
    with Process("a", BUDGET) as idle, Process("a", BUDGET) as needy:
        assert idle.ask("map", BUDGET) >= 0
        idle.ask("unkeep")
        waited = needy.ask("map", 32 * MIB)
        print(f"pages after {1e3 * waited:.1f} ms")
        assert waited >= 0
        assert idle.ask("created") <= 32 * MIB
        # Not more than is fair, although it is idle.
        assert needy.ask("map", 48 * MIB, 0.5) == -1
        assert sum(lease.grant for lease in vmm.leases("a")) <= BUDGET


def test_what_is_in_use_is_not_torn_away_and_a_minimum_comes_when_its_owner_yields():
    with Process("a", BUDGET, 0, 100) as busy:
        busy.ask("map", BUDGET)
        with Process("a", BUDGET, 16 * MIB, -100) as late:
            late.tell("map", 16 * MIB)
            assert busy.ask("await_pressure", 30) == 16 * MIB
            until(lambda: {lease.wanted for lease in vmm.leases("a")} == {0, 16 * MIB})
            assert busy.ask("created") == BUDGET
            busy.ask("unkeep")
            assert late._answer() >= 0
            assert busy.ask("created") <= 48 * MIB


def test_who_is_killed_leaves_everything():
    with Process("a", BUDGET) as survivor, Process("a", BUDGET) as dying:
        dying.ask("map", 60 * MIB)
        dying.kill()
        assert survivor.ask("map", BUDGET) >= 0
        assert [lease.pid for lease in vmm.leases("a")] == [survivor.popen.pid]


def kill_many(kills):
    """In a process of its own, which forks faster than one with torch and pytest in it."""
    script = Path(__file__).with_name("share_killer.py")
    done = subprocess.run([sys.executable, script, str(kills)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_processes_are_killed_at_any_moment():
    kill_many(300)


@pytest.mark.long
@pytest.mark.timeout(600)
def test_ten_thousand_processes_are_killed():
    kill_many(10_000)
