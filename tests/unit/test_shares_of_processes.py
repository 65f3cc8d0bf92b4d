"""Real processes in one share: they press each other, and are killed at any moment."""

import os
import random
import signal
import time

import pytest

import vmm
from vmm import _core
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


def _restless(path, seed):
    """Raises and lowers its grant for ever, so that it is in the file nearly all the time."""
    # Straight to the core: no pool, whose driver would take most of the time.
    part = _core.SharedBudget(path, BUDGET, MIB, seed % 3)
    limit = MIB
    while True:
        limit = MIB + (limit * 7 + seed * 65537) % (63 * MIB)
        part.set_limit(limit)


def _kill_many(folder, kills):
    path = str(folder / "vmm-share-a")
    watcher = _core.SharedBudget(path, BUDGET, MIB, 0)
    seed = random.randrange(2**32)
    chance = random.Random(seed)
    running = []
    for _ in range(kills):
        while len(running) < 3:
            pid = os.fork()
            if pid == 0:
                try:
                    _restless(path, chance.randrange(1000))
                finally:
                    os._exit(9)
            running.append(pid)
        time.sleep(chance.random() * 0.004)
        victim = running.pop(chance.randrange(len(running)))
        os.kill(victim, signal.SIGKILL)
        _, status = os.waitpid(victim, 0)
        assert os.waitstatus_to_exitcode(status) == -signal.SIGKILL, f"seed {seed}"
        found = vmm.leases("a")
        assert os.getpid() in {lease.pid for lease in found}, f"seed {seed}"
        assert victim not in {lease.pid for lease in found}, f"seed {seed}"
        assert sum(lease.grant for lease in found) <= BUDGET, f"seed {seed}"
    for pid in running:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    assert [lease.pid for lease in vmm.leases("a")] == [os.getpid()]
    watcher.detach()
    with vmm.Pool(BUDGET, share="a") as pool:
        assert pool.warm(BUDGET) == BUDGET


def test_processes_are_killed_at_any_moment(folder):
    _kill_many(folder, 300)


@pytest.mark.long
@pytest.mark.timeout(600)
def test_ten_thousand_processes_are_killed(folder):
    _kill_many(folder, 10_000)
