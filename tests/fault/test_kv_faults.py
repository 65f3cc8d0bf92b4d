"""Every driver call in the life of a KVTensor is made to fail, in turn. See test_faults.py."""

import copy

import pytest
import tally
import torch

from vmm import Error, _core
from vmm.kv_tensor.memory import KVMemory
from vmm.kv_tensor.tensor import KVTensor

PAGE = 4096


class Facade:
    """What KVMemory uses of a vmm.Pool."""

    def __init__(self):
        self._core = _core.Pool(64 * PAGE, arena_bytes=1 << 30, pager_thread=False, faults=True)
        self._runs_late = False


def make(facade):
    return KVTensor._over(KVMemory((2, 1000, 16), torch.float32, 1, PAGE, facade))


class Scenario:
    """Steps that check, after each failure, that nothing has changed. ``failed`` counts what was refused."""

    def __init__(self, facade):
        self.facade, self.core = facade, facade._core
        self.t = make(facade)
        self.expected = torch.zeros(2, 0, 16)
        self.failed = 0

    def attempt(self, step):
        try:
            return step()
        except Error:
            self.failed += 1
            return None

    def check(self):
        self.core.check()
        assert self.t.length == self.expected.shape[1]

    def append(self, count):
        before, x = self.t.mapped_bytes, torch.randn(2, count, 16)
        failures = self.failed
        self.attempt(lambda: self.t.append(x))
        if self.failed == failures:
            self.expected = torch.cat([self.expected, x], 1)
        else:
            assert self.t.mapped_bytes == before
        self.check()

    def truncate(self, to):
        failures = self.failed
        self.attempt(lambda: self.t.truncate(to, stream=0))
        if self.failed == failures:
            self.expected = self.expected[:, :to]
        self.check()

    def run(self):
        self.append(70)
        view = self.attempt(lambda: self.t[:, :64])
        self.append(200)
        self.core.poll()
        self.truncate(100)
        self.attempt(lambda: self.t.release(0, 64))
        self.expected[:, :64] = 0
        self.attempt(lambda: self.t.reserve(300))
        self.append(50)
        copies = [self.attempt(lambda: copy.deepcopy(self.t)), self.attempt(lambda: make(self.facade))]
        self.attempt(lambda: self.t[:, torch.tensor([900, 950])])
        self.core.poll()
        self.attempt(lambda: self.t.add_(0))
        assert view is None or view.shape == (2, 64, 16)
        read = self.attempt(lambda: self.t[:, 64 : self.expected.shape[1]])
        assert read is None or torch.equal(read, self.expected[:, 64:])
        del view, copies, read
        self.attempt(self.t.close)


@pytest.mark.parametrize("out_of_memory", [False, True], ids=["error", "out-of-memory"])
@pytest.mark.parametrize("times", [1, 3], ids=["once", "three-times"])
def test_every_failure_is_survived(times, out_of_memory):
    def attempt(n):
        facade = Facade()
        pool = facade._core
        scenario = Scenario(facade)
        pool.fail_at(n, times, out_of_memory)
        scenario.run()
        failed = pool.last_failed
        pool.fail_at(0, 0)
        pool.check()
        again = Scenario(facade)
        again.run()
        assert again.failed == 0
        del scenario, again
        tally.end(pool, pool.memfd)
        return failed

    tally.each_failure(attempt, least=20)
