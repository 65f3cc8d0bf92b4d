"""Every driver call in the life of a serving engine is made to fail, in turn. See test_faults.py."""

import pytest
import tally
import torch
from own_pool import faulty_pool, int32

from vmm import Error, KVCache

PAGE = 4096
DIM = 64  # 16 float32 tokens a page, in each of K and V


class Scenario:
    """Two engines, on streams of their own, that check after each failure that nothing has changed. Whatever
    a step computes gets a number of its own: what K holds, and V the negative of it."""

    window = 70
    streams_of_its_own = 2

    def __init__(self, pool):
        self.pool, self.core = pool, pool._core
        self.failed = 0
        self.lost = 0  # sequences that have lost their tokens, as truncate() may where the driver gives up
        self.streams = [self.insist(self.core.create_stream) for _ in range(self.streams_of_its_own)] or [0]
        self.cache = self.insist(
            lambda: KVCache(
                1,
                1,
                DIM,
                torch.float32,
                window=self.window,
                max_tokens=300,
                max_sequences=4,
                pool=pool,
                page_bytes=PAGE,
            )
        )
        self.tokens = {}  # of each sequence: their numbers
        self.last_number = 0

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
        for sequence, numbers in self.tokens.items():
            assert sequence.length == len(numbers)
            expected = torch.tensor(numbers, dtype=torch.float32).view(-1, 1, 1)
            for view, sign in zip(sequence.kv(0), (1, -1), strict=True):
                assert (view == sign * expected[len(numbers) - view.shape[0] :]).all()

    def open(self, prompt, stream=0):
        sequence = self.attempt(lambda: self.cache.open(prompt, stream=self.streams[stream]))
        if sequence is not None:
            self.tokens[sequence] = []
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
            numbers = self.tokens[sequence]
            added = length - len(numbers)
            self.last_number += 1
            for view, sign in zip(sequence.kv(0), (1, -1), strict=True):
                view[view.shape[0] - added :] = sign * self.last_number
            numbers += [self.last_number] * added
        return self.check()

    def close(self, sequence, stream=0):
        if sequence is None:
            return
        failures = self.failed
        self.attempt(lambda: sequence.close(self.streams[stream]))
        if self.failed == failures:
            del self.tokens[sequence]

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
            self.truncate(a, max(a.length - 3, 0))
        self.step({a: 200} if a is not None and a.length <= 200 else {})
        self.end()

    def truncate(self, sequence, to):
        before, failures = sequence.length, self.failed
        self.attempt(lambda: sequence.truncate(to))
        failed = self.failed != failures
        self.lost += (lost := failed and sequence.length == 0 != before)
        assert sequence.length == (0 if lost else before if failed else to)
        del self.tokens[sequence][sequence.length :]

    def end(self):
        for stream in self.streams:
            self.attempt(lambda stream=stream: self.cache.end(stream))
        self.check()
        self.cache.close()
        for stream in self.streams:
            if stream:
                self.insist(lambda stream=stream: self.core.destroy_stream(stream) or True)


class Forks(Scenario):
    """Sequences with tokens in common, which go on, are cut back into what they share, and end. All that on
    one stream."""

    window = None
    streams_of_its_own = 0

    def fork(self, sequence, n):
        if sequence is None:
            return [None] * n
        kept = self.core.stats()["kept_bytes"]
        forks = self.attempt(lambda: sequence.fork(n, stream=0))
        if forks is None:
            assert self.core.stats()["kept_bytes"] == kept
            forks = []
        for each in forks:
            self.tokens[each] = list(self.tokens[sequence])
        self.check()
        return forks or [None] * n

    def cut(self, sequence):
        """Back to 90 tokens, which are shared, and which no window has left behind."""
        if sequence is not None and sequence.length > 90:
            self.truncate(sequence, 90)
            self.check()

    def grow(self, *wanted):
        """By so many tokens each."""
        self.step({sequence: sequence.length + more for sequence, more in wanted if sequence is not None})

    def run(self):
        a = self.open(110)
        self.grow((a, 90))
        self.grow((a, 20))
        b, c = self.fork(a, 2)
        self.cut(c)
        self.grow((a, 10), (b, 20))
        self.grow((c, 10))
        self.core.poll()
        [d] = self.fork(b, 1)
        self.close(a)
        self.check()
        self.grow((b, 17), (c, 30), (d, 1))
        self.attempt(lambda: self.core.trim(4 * PAGE))
        self.check()
        self.close(b)
        self.core.poll()
        self.check()
        self.grow((c, 40), (d, 60))
        [e] = self.fork(d, 1)
        self.close(d)
        self.grow((e, 5))
        self.end()


class ForksWithAWindow(Forks):
    window = 70


@pytest.mark.parametrize("kind", [Scenario, Forks, ForksWithAWindow])
@pytest.mark.parametrize("out_of_memory", [False, True], ids=["error", "out-of-memory"])
@pytest.mark.parametrize("times", [1, 3], ids=["once", "three-times"])
def test_every_failure_is_survived(times, out_of_memory, kind):
    def attempt(n):
        pool = faulty_pool(80)
        core = pool._core
        core.fail_at(n, times, out_of_memory)
        scenario = kind(pool)
        scenario.run()
        assert times > 1 or scenario.lost == 0
        failed = core.last_failed
        core.fail_at(0, 0)
        again = kind(pool)
        again.run()
        assert again.failed == 0
        del scenario, again
        tally.end(core, core.memfd)
        return failed

    tally.each_failure(attempt, least=30)
