"""The pool against a naive model, a dict of bytes, with driver calls that fail and events that are late."""

import ctypes
import os
from dataclasses import dataclass, field

import cuda_standin
from cuda_standin import ON_CUDA
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import initialize, invariant, rule
from pool_machine import ANY, LATEST, PAGE, PoolMachine, pick

from vmm import DriverError, OutOfPages, _core

BUDGET_PAGES = 40
MOST_LEASES = 4
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

    @rule(
        extent_pages=st.integers(1, 12),
        extents=st.integers(1, 3),
        kind=st.integers(0, 1),
        zeroed=st.booleans(),
        stream=st.sampled_from([None, 0]),
    )
    def reserve(self, extent_pages, extents, kind, zeroed, stream):
        if len(self.models) == MOST_LEASES:
            return
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

    @rule(which=ANY, first=ANY, count=ANY)
    def map(self, which, first, count):
        model, first, count = self.range_of(which, first, count)
        if model is None:
            return
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

    @rule(which=ANY)
    def write(self, which):
        model = pick(self.models, which)
        for page in model.kept if model else ():
            self.writes += 1
            model.kept[page] = fill(model.kind, self.writes)
            for end in (0, PAGE - MARK):
                ctypes.memmove(model.lease.address + page * PAGE + end, model.kept[page], MARK)

    @rule(which=ANY, first=ANY, count=ANY)
    def unkeep(self, which, first, count):
        model, first, count = self.range_of(which, first, count)
        if model is None:
            return
        model.lease.unkeep([(first, count)])
        self.forget(model, first, count)

    @rule(which=ANY, first=ANY, count=ANY)
    def retire(self, which, first, count):
        model, first, count = self.range_of(which, first, count)
        if model is None:
            return
        model.lease.retire([(first, count)])
        self.forget(model, first, count)

    @rule(which=ANY)
    def drop(self, which):
        model = pick(self.models, which)
        if model:
            self.models.remove(model)
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

    def range_of(self, which, first, count):
        """A model, if there is any, and pages of it, for what was drawn: the first, and how many."""
        model = pick(self.models, which)
        if model is None:
            return None, 0, 0
        first %= model.pages
        return model, first, 1 + count % (model.pages - first)

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
