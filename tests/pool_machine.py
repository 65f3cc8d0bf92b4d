"""What a state machine of a pool's users does to the pool, and its platform."""

import contextlib

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, rule

from vmm import DriverError

PAGE = 4096
MOST_PAGES = 56  # of a budget


class PoolMachine(RuleBasedStateMachine):
    """``core`` is a vmm._core.Pool made with ``faults=True``; ``budget_pages`` what it has at first."""

    core = None
    budget_pages = MOST_PAGES

    def __init__(self):
        super().__init__()
        self.failing = False

    @rule(times=st.integers(1, 4))
    def poll(self, times):
        for _ in range(times):
            self.core.poll()

    @rule(pages=st.integers(1, MOST_PAGES))
    def trim(self, pages):
        with self.tolerated():
            assert self.core.trim(pages * PAGE) <= self.budget_pages * PAGE

    @rule(fraction=st.sampled_from([4, 3, 2, 1]), less=st.integers(0, 3))
    def set_budget(self, fraction, less):
        self.core.budget.set_limit((self.budget_pages // fraction - less) * PAGE)

    @rule(n=st.integers(1, 6), times=st.integers(1, 4), out_of_memory=st.booleans())
    def fail(self, n, times, out_of_memory):
        self.core.fail_at(n, times, out_of_memory)
        self.failing = True

    @rule()
    def recover(self):
        self.core.fail_at(0, 0)
        self.failing = False

    @contextlib.contextmanager
    def tolerated(self):
        try:
            yield
        except DriverError:
            assert self.failing
