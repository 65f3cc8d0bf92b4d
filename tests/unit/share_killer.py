"""Kills processes that change a share all the time, each at a random moment: share_killer.py KILLS."""

import os
import random
import signal
import sys
import time
import traceback

import vmm
from vmm import _core

MIB = 2**20
BUDGET = 64 * MIB


def restless(path, seed):
    """Raises and lowers its grant for ever, so that it is in the file half of the time."""
    # Straight to the core: no pool, whose driver would take most of the time.
    part = _core.SharedBudget(path, BUDGET, MIB, seed % 3)
    limit = MIB
    while True:
        limit = MIB + (limit * 7 + seed * 65537) % (63 * MIB)
        part.set_limit(limit)
        time.sleep(0.0001)  # or a busy machine would let the others starve


def kill_many(kills):
    path = os.environ["VMM_SHARE_DIR"] + "/vmm-share-a"
    watcher = _core.SharedBudget(path, BUDGET, MIB, 0)
    seed = random.randrange(2**32)
    chance = random.Random(seed)
    running = []
    for _ in range(kills):
        while len(running) < 2:
            pid = os.fork()
            if pid == 0:
                try:
                    restless(path, chance.randrange(1000))
                except BaseException:
                    traceback.print_exc()
                finally:
                    os._exit(9)
            running.append(pid)
        time.sleep(chance.random() * 0.002)
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


if __name__ == "__main__":
    kill_many(int(sys.argv[1]))
