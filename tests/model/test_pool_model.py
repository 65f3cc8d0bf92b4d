"""The pool against a naive model, a dict of bytes, with driver calls that fail and events that are late."""

import ctypes
import os
from dataclasses import dataclass, field

import cuda_standin
from cuda_standin import ON_CUDA
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import initialize, invariant, precondition, rule
from pool_machine import LATEST, PAGE, PoolMachine

from vmm import DriverError, OutOfPages, _core

BUDGET_PAGES = 40
MARK = 32  # bytes written at both ends of a page


@dataclass(eq=False)
class Model:
    """What one lease must hold: the bytes of every page that is kept, and whose they are."""

    lease: _core.Lease
    kind: int
    zeroed: bool
    pages: int
    kept: dict[int, bytes | None] = field(default_factory=dict)  # None: mapped, contents not yet written


def fill(kind: int, number: int) -> bytes:
    """Recognisable as of that kind: every byte is 16 * (kind + 1) + something."""
    return bytes([16 * (kind + 1) + number % 16]) * MARK


def make_pool():
    device = {"cuda_device": 0, "cuda_host_accessible": True} if ON_CUDA else {}
    if ON_CUDA:
        cuda_standin.loaded().reset(seed=1)  # the same steps must take the same course
    return _core.Pool(
        BUDGET_PAGES * PAGE,
        arena_bytes=1 << 30,
        run_bytes=4 * PAGE,
        pager_thread=False,
        faults=True,
        **device,
    )


class LeaseMachine(PoolMachine):
    budget_pages = BUDGET_PAGES

    def __init__(self):
        super().__init__()
        self.core = make_pool()
        self.models: list[Model] = []
        self.writes = 0

    @initialize(watched=st.booleans())
    def begin(self, watched):
        if watched:
            self.core.watch(0)

    # What the pool is asked to do.

    @precondition(lambda self: len(self.models) < 4)
    @rule(
        extent_pages=st.integers(1, 12),
        extents=st.integers(1, 3),
        kind=st.integers(0, 1),
        zeroed=st.booleans(),
        stream=st.sampled_from([None, 0]),
    )
    def reserve(self, extent_pages, extents, kind, zeroed, stream):
        with self.tolerated():
            lease = self.core.reserve(
                page_bytes=PAGE,
                extent_bytes=extent_pages * PAGE,
                extents=extents,
                kind=kind,
                zeroed=zeroed,
                stream=stream,
            )
            self.models.append(Model(lease, kind, zeroed, extent_pages * extents))

    @precondition(lambda self: self.models)
    @rule(data=st.data())
    def map(self, data):
        model, first, count = self.draw_range(data)
        if model.zeroed and self.work_is_late:
            self.finish_work()  # else it would, rightly, wait for ever
        before = dict(model.kept)
        missing = model.lease.missing([(first, count)])
        try:
            model.lease.map([(first, count)])
        except OutOfPages as error:
            assert error.asked <= missing or self.failing
            # A lowered budget is first to be met: what it is exceeded by is asked for, too.
            owed = max(0, self.core.stats()["created_bytes"] - error.budget)
            assert self.failing or self.work_is_late or error.free + error.reclaimable < error.asked + owed
            assert model.kept == before
            return
        except DriverError:
            assert self.failing
            return
        for page in range(first, first + count):
            if page not in model.kept:
                model.kept[page] = None
                self.check_first_sight(model, page, was_missing=missing == count * PAGE)

    @precondition(lambda self: self.models)
    @rule(data=st.data())
    def write(self, data):
        model = self.models[data.draw(st.integers(0, len(self.models) - 1))]
        for page in model.kept:
            self.writes += 1
            model.kept[page] = fill(model.kind, self.writes)
            for end in (0, PAGE - MARK):
                ctypes.memmove(model.lease.address + page * PAGE + end, model.kept[page], MARK)

    @precondition(lambda self: self.models)
    @rule(data=st.data())
    def unkeep(self, data):
        model, first, count = self.draw_range(data)
        model.lease.unkeep([(first, count)])
        self.forget(model, first, count)

    @precondition(lambda self: self.models)
    @rule(data=st.data())
    def retire(self, data):
        model, first, count = self.draw_range(data)
        model.lease.retire([(first, count)])
        self.forget(model, first, count)

    @precondition(lambda self: self.models)
    @rule(data=st.data())
    def drop(self, data):
        model = self.models.pop(data.draw(st.integers(0, len(self.models) - 1)))
        model.lease = None  # Hypothesis may keep the model itself

    # What the platform does to it.

    @rule(late=st.integers(0, LATEST), step=st.booleans(), stream=st.integers(0, 0))
    def run_work(self, late, step, stream):
        self.core.delay_events(late)
        self.work_is_late = True
        with self.tolerated():
            (self.core.step if step else self.core.end)(stream)
            self.work_is_late = late != 0 or step

    # What must be true.

    @invariant()
    def tables_agree(self):
        self.core.check()

    @invariant()
    def kept_bytes_are_as_written(self):
        for model in self.models:
            for page, expected in model.kept.items():
                if expected is not None:
                    address = model.lease.address + page * PAGE
                    assert ctypes.string_at(address, MARK) == expected
                    assert ctypes.string_at(address + PAGE - MARK, MARK) == expected

    @invariant()
    def the_pool_counts_as_we_do(self):
        stats = self.core.stats()
        assert stats["kept_bytes"] == PAGE * sum(len(model.kept) for model in self.models)
        assert stats["created_bytes"] <= BUDGET_PAGES * PAGE
        assert stats["mapped_bytes"] + stats["free_bytes"] <= stats["created_bytes"]
        assert ON_CUDA or os.fstat(self.core.memfd).st_blocks * 512 == stats["created_bytes"]

    def teardown(self):
        self.finish_work()
        for model in self.models:
            model.lease = None
        self.end_pool()
        assert ON_CUDA or os.fstat(self.core.memfd).st_blocks == 0
        self.core = None

    # Helpers.

    def draw_range(self, data):
        model = self.models[data.draw(st.integers(0, len(self.models) - 1))]
        first = data.draw(st.integers(0, model.pages - 1))
        return model, first, data.draw(st.integers(1, model.pages - first))

    def forget(self, model, first, count):
        for page in range(first, first + count):
            model.kept.pop(page, None)

    def check_first_sight(self, model, page, was_missing):
        """A page may hold old bytes of its own kind, never of another; in a zeroed reservation, none."""
        seen = ctypes.string_at(model.lease.address + page * PAGE, PAGE)
        if model.zeroed and was_missing:
            assert seen == bytes(PAGE)
        assert {byte // 16 for byte in seen} <= {0, model.kind + 1}


LeaseMachine.TestCase.settings = settings(
    max_examples=int(os.environ.get("VMM_EXAMPLES", "200")), stateful_step_count=40, deadline=None
)
TestPoolAgainstModel = LeaseMachine.TestCase
