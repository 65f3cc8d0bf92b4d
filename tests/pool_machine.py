"""What a state machine of a pool's users does to the pool, and its platform."""

import contextlib
from time import monotonic

from core_pool import settle
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, rule

from vmm import DriverError

PAGE = 4096
MOST_PAGES = 56  # of a budget
DEVICE_HELD_S = 1.5
LATEST = 9  # queries that an event may be late by
# What a rule draws never depends on what came of earlier steps: which driver call fails, and whether work is
# over, may hang on a thread's timing, and Hypothesis stops at draws that differ when it repeats a course.
ANY = st.integers(0, 1 << 16)


def pick(items, number):
    """The item that a number of ANY stands for, or None where there is none."""
    return items[number % len(items)] if items else None


class PoolMachine(RuleBasedStateMachine):
    """``core`` is a vmm._core.Pool made with ``faults=True``; ``budget_pages`` what it has at first."""

    core = None
    budget_pages = MOST_PAGES

    def __init__(self):
        super().__init__()
        self.failing = False
        self.out_of_memory = False  # is what fails
        self.refused_s = float("-inf")  # when the device last had no memory
        self.work_is_late = False  # an unfinished epoch holds back what is reclaimable

    @rule(times=st.integers(1, 4))
    def poll(self, times):
        for _ in range(times):
            self.core.poll()

    @rule(pages=st.integers(1, MOST_PAGES))
    def trim(self, pages):
        with self.tolerated():
            assert self.core.trim(pages * PAGE) <= self.budget_pages * PAGE

    @rule(pages=st.integers(1, MOST_PAGES), at_most=st.integers(1, MOST_PAGES))
    def warm(self, pages, at_most):
        with self.tolerated():
            assert self.core.warm(pages * PAGE, PAGE, at_most * PAGE) % PAGE == 0

    @rule(percent=st.integers(25, 100))
    def set_budget(self, percent):
        self.core.budget.set_limit(self.budget_pages * percent // 100 * PAGE)

    @rule(n=st.integers(1, 6), times=st.integers(1, 4), out_of_memory=st.booleans())
    def fail(self, n, times, out_of_memory):
        self.recover()
        self.core.fail_at(n, times, out_of_memory)
        self.failing, self.out_of_memory = True, out_of_memory

    @rule()
    def recover(self):
        if self.out_of_memory and self.core.last_failed:
            self.refused_s = monotonic()
        self.core.fail_at(0, 0)
        self.failing = self.out_of_memory = False

    def device_is_asked(self):
        """Nobody asks a device that has just had no memory; for a second after that."""
        return monotonic() - self.refused_s > DEVICE_HELD_S

    def finish_work(self):
        self.recover()
        self.core.delay_events(0)
        self.core.end()
        for _ in range(10 * LATEST):  # a poll asks once
            self.core.poll()
        self.work_is_late = False

    def end_pool(self):
        """When all work is over and nothing is leased: everything must come back."""
        self.core.close()
        settle(self.core)
        self.core.trim(1 << 40)
        self.core.check()
        assert self.core.stats()["created_bytes"] == 0, self.core.stats()
        assert self.core.budget.taken_bytes == 0

    @contextlib.contextmanager
    def tolerated(self):
        try:
            yield
        except DriverError:
            assert self.failing
