"""Every driver call in the life of a serving engine is made to fail, in turn. See test_faults.py."""

import pytest
import tally
import torch
from own_pool import faulty_pool, int32

from vmm import Error, KVCache

PAGE = 4096
DIM = 64  # 16 float32 tokens a page, in each of K and V


class Scenario:
    """Two engines, on streams of their own, that check after each failure that nothing has changed."""

    def __init__(self, pool):
        self.pool, self.core = pool, pool._core
        self.failed = 0
        self.streams = [self.insist(self.core.create_stream) for _ in range(2)]
        self.cache = self.insist(
            lambda: KVCache(
                1,
                1,
                DIM,
                torch.float32,
                window=70,
                max_tokens=300,
                max_sequences=3,
                pool=pool,
                page_bytes=PAGE,
            )
        )
        self.lengths = {}

    def insist(self, work):
        """Until it succeeds: without it there is nothing to try."""
        for _ in range(5):
            if (made := self.attempt(work)) is not None:
                return made
        raise AssertionError("fails for good")

    def attempt(self, work):
        try:
            return work()
        except Error:
            self.failed += 1
            return None

    def check(self):
        self.core.check()
        for sequence, length in self.lengths.items():
            assert sequence.length == length
            k, v = sequence.kv(0)
            assert (k == sequence.slot + 1).all()
            assert (v == -1 - sequence.slot).all()

    def open(self, prompt, stream=0):
        sequence = self.attempt(lambda: self.cache.open(prompt, stream=self.streams[stream]))
        if sequence is not None:
            self.lengths[sequence] = 0
        return sequence

    def step(self, wanted, stream=0):
        wanted = {sequence: length for sequence, length in wanted.items() if sequence is not None}
        slots, lengths = int32(*(sequence.slot for sequence in wanted)), int32(*wanted.values())
        kept = self.core.stats()["kept_bytes"]
        failures = self.failed
        self.attempt(lambda: self.cache.step(slots, lengths, self.streams[stream]))
        if self.failed != failures:
            assert self.core.stats()["kept_bytes"] == kept
            return self.check()
        for sequence, length in wanted.items():
            added = length - self.lengths[sequence]
            for view, sign in zip(sequence.kv(0), (1, -1), strict=True):
                view[view.shape[0] - added :] = sign * (sequence.slot + 1)
            self.lengths[sequence] = length
        return self.check()

    def close(self, sequence, stream=0):
        if sequence is None:
            return
        failures = self.failed
        self.attempt(lambda: sequence.close(self.streams[stream]))
        if self.failed == failures:
            del self.lengths[sequence]

    def run(self):
        a, b = self.open(40), self.open(20, stream=1)
        self.step({a: 40})
        self.step({b: 90}, stream=1)
        self.core.poll()
        self.step({a: 110})
        self.close(b, stream=1)
        c, d = self.open(100), self.open(10, stream=1)
        self.step({a: 180, c: 100})
        self.attempt(lambda: self.core.trim(4 * PAGE))
        self.step({d: 120}, stream=1)
        self.core.poll()
        if a is not None:
            n = self.lengths[a]
            self.attempt(lambda: a.truncate(n - min(n, 3)))
            self.lengths[a] = a.length
        self.step({a: 200} if a is not None and self.lengths[a] <= 200 else {})
        for stream in self.streams:
            self.attempt(lambda stream=stream: self.cache.end(stream))
        self.check()
        self.cache.close()
        for stream in self.streams:
            self.insist(lambda stream=stream: self.core.destroy_stream(stream) or True)


@pytest.mark.parametrize("out_of_memory", [False, True], ids=["error", "out-of-memory"])
@pytest.mark.parametrize("times", [1, 3], ids=["once", "three-times"])
def test_every_failure_is_survived(times, out_of_memory):
    def attempt(n):
        pool = faulty_pool(80)
        core = pool._core
        core.fail_at(n, times, out_of_memory)
        scenario = Scenario(pool)
        scenario.run()
        failed = core.last_failed
        core.fail_at(0, 0)
        again = Scenario(pool)
        again.run()
        assert again.failed == 0
        del scenario, again
        tally.end(core, core.memfd)
        return failed

    tally.each_failure(attempt, least=30)
