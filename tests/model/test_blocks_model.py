"""Blocks of a range against a naive model: which blocks are kept, and what each holds."""

import ctypes
import os

from cuda_standin import ON_CUDA
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import initialize, invariant, precondition, rule
from pool_machine import LATEST, PAGE, PoolMachine
from test_pool_model import BUDGET_PAGES, make_pool

from vmm import DriverError, OutOfPages, _core

RANGE_PAGES = 96
MOST_BLOCKS = 24
MARK = 8  # bytes written at both ends of a block in each stretch

ids_of = st.lists(st.integers(0, MOST_BLOCKS - 1), max_size=6)


class BlocksMachine(PoolMachine):
    budget_pages = BUDGET_PAGES

    def __init__(self):
        super().__init__()
        self.core = make_pool()
        self.other = None  # a lease that competes for the memory
        self.other_kept = set()
        self.written = {}  # by kept block: what its ends hold; None: not known yet
        self.announced = set()
        self.writes = 0

    @initialize(
        stride=st.integers(MARK, 3 * PAGE),
        starts=st.lists(st.integers(0, 20).map(lambda n: n * PAGE // 4), min_size=1, max_size=4, unique=True),
        zeroed=st.booleans(),
    )
    def begin(self, stride, starts, zeroed):
        # The stretches do not overlap, but may share a page with their neighbours.
        self.count = MOST_BLOCKS
        size = RANGE_PAGES * PAGE
        self.stride = min(stride, (size - 6 * PAGE) // (len(starts) * self.count))
        self.starts = [i * self.stride * self.count + start % PAGE for i, start in enumerate(sorted(starts))]
        for i in range(1, len(self.starts)):
            self.starts[i] = max(self.starts[i], self.starts[i - 1] + self.stride * self.count)
        self.range = _core.Range(self.core, size=size, page_bytes=PAGE, zeroed=zeroed)
        self.blocks = self.range.blocks(self.starts, self.stride, self.count)
        self.other = self.core.reserve(page_bytes=PAGE, extent_bytes=BUDGET_PAGES * PAGE)

    def pages_of(self, block):
        places = (start + block * self.stride for start in self.starts)
        return {
            page for place in places for page in range(place // PAGE, (place + self.stride - 1) // PAGE + 1)
        }

    def pages(self, blocks):
        return set().union(*(self.pages_of(block) for block in blocks))

    # What the engine asks for.

    @rule(ids=ids_of)
    def keep(self, ids):
        self.finish_work_that_is_waited_for()
        try:
            self.blocks.keep(ids)
        except OutOfPages as error:
            owed = max(0, self.core.stats()["created_bytes"] - error.budget)
            assert self.failing or self.work_is_late or error.free + error.reclaimable < error.asked + owed
            return
        except DriverError:
            assert self.failing
            return
        self.note_kept(ids)

    @rule(ids=ids_of)
    def keep_ready(self, ids):
        kept = self.blocks.keep_ready(ids)
        assert [block for block in ids if block in self.written] == [
            block for block in kept if block in self.written
        ]
        assert set(kept) <= set(ids)
        self.note_kept(kept)

    @rule(ids=ids_of)
    def announce(self, ids):
        self.blocks.announce(ids)
        self.announced |= set(ids) - self.written.keys()

    @rule(ids=ids_of, unmap=st.booleans())
    def drop(self, ids, unmap):
        self.blocks.drop(ids, unmap)
        for block in ids:
            self.written.pop(block, None)
            self.announced.discard(block)

    @rule(ids=ids_of)
    def ready(self, ids):
        flags = dict(zip(ids, self.blocks.ready(ids), strict=True))
        assert all(flags[block] for block in ids if block in self.written)

    @rule()
    def write(self):
        for block in self.written:
            self.writes += 1
            self.written[block] = bytes([1 + self.writes % 255]) * MARK
            for place in self.ends_of(block):
                ctypes.memmove(place, self.written[block], MARK)

    # What competes.

    @rule(first=st.integers(0, BUDGET_PAGES - 1), count=st.integers(1, BUDGET_PAGES))
    def others_need_memory(self, first, count):
        count = min(count, BUDGET_PAGES - first)
        try:
            self.other.map([(first, count)])
        except OutOfPages:
            return
        except DriverError:
            assert self.failing
            return
        self.other_kept |= set(range(first, first + count))

    @rule()
    def others_give_up(self):
        self.other.unkeep([(0, BUDGET_PAGES)])
        self.other_kept.clear()

    @rule(late=st.integers(0, LATEST), step=st.booleans())
    def run_work(self, late, step):
        self.core.delay_events(late)
        self.work_is_late = True
        with self.tolerated():
            (self.core.step if step else self.core.end)(0)
            self.work_is_late = late != 0 or step

    @precondition(lambda self: not self.failing)
    @rule()
    def what_is_announced_is_mapped_where_there_is_room(self):
        self.finish_work()
        needed = self.pages(self.written.keys() | self.announced)
        limit = self.core.budget.limit_bytes // PAGE
        if self.device_is_asked() and len(needed) + len(self.other_kept) <= limit // 2:
            self.blocks.announce(sorted(self.announced))  # what was taken since is asked for again
            for _ in range(100):
                self.core.poll()
            assert self.blocks.ready(sorted(self.announced)) == b"\1" * len(self.announced)

    # What must be true.

    @invariant()
    def tables_agree(self):
        self.core.check()

    @invariant()
    def the_pool_counts_as_we_do(self):
        if self.other is None:
            return
        kept = self.pages(self.written)
        assert self.core.stats()["kept_bytes"] == PAGE * (len(kept) + len(self.other_kept))
        assert self.blocks.kept == len(self.written)
        assert self.blocks.announced == len(self.announced - self.written.keys())

    @invariant()
    def kept_bytes_are_as_written(self):
        for block, expected in self.written.items():
            for place in self.ends_of(block) if expected is not None else ():
                assert ctypes.string_at(place, MARK) == expected

    # Helpers.

    def ends_of(self, block):
        for start in self.starts:
            place = self.range.lease.address + start + block * self.stride
            yield from (place, place + self.stride - MARK)

    def note_kept(self, ids):
        for block in ids:
            self.written.setdefault(block, None)

    def finish_work_that_is_waited_for(self):
        """Who wants back what is being unmapped would, rightly, wait for an open epoch for ever."""
        if self.work_is_late:
            self.finish_work()

    def teardown(self):
        self.finish_work()
        self.other = self.blocks = self.range = None
        self.end_pool()
        assert ON_CUDA or os.fstat(self.core.memfd).st_blocks == 0
        self.core = None


BlocksMachine.TestCase.settings = settings(
    max_examples=int(os.environ.get("VMM_EXAMPLES", "200")), stateful_step_count=40, deadline=None
)
TestBlocksAgainstModel = BlocksMachine.TestCase
