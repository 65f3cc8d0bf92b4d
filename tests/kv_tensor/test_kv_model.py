"""Random lives of a KVTensor against a plain tensor, what was released, and slices with their bytes."""

import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from vmm import InvalidArgument, KVTensor, Pool
from vmm.testing import settle

TOKENS = 90
SHAPES = [
    ((3, TOKENS, 5), 1),
    ((TOKENS, 70), 0),
    ((2, 2, TOKENS, 13), 2),
    ((40, TOKENS), 1),
    ((1, TOKENS, 999), 1),
]


class Life:
    def __init__(self, shape, grow_dim):
        self.pool = Pool("64MiB", lookahead_pages=1)
        self.t = KVTensor(*shape, grow_dim=grow_dim, page_bytes=4096, pool=self.pool)
        self.plain = torch.zeros(shape)
        self.unsure = torch.zeros(shape, dtype=torch.bool)  # released: old bytes, or zeros
        self.dim = grow_dim
        self.length = 0
        self.kept = []  # (slice, its bytes)
        self.value = 0

    def index(self, start, end):
        return (slice(None),) * self.dim + (slice(start, end),)

    def fresh(self, index):
        self.value += 1
        shape = self.plain[index].shape
        return torch.arange(shape.numel()).reshape(shape).remainder(97) + 100.0 * self.value

    def wrote(self, index, x):
        self.plain[index] = x
        self.unsure[index] = False
        for _, where, bytes_ in self.kept:
            mine = torch.zeros_like(self.unsure)
            mine[index] = True
            bytes_[mine[where]] = self.plain[where][mine[where]]

    def append(self, a, b):
        count = abs(a - b) // 3
        index = self.index(self.length, self.length + count)
        if self.length + count > TOKENS:
            try:
                self.t.append(
                    torch.zeros(self.plain[self.index(0, 1)].shape).repeat_interleave(count, self.dim)
                )
                raise AssertionError("past the end")
            except InvalidArgument:
                return
        x = self.fresh(index)
        self.t.append(x)
        self.wrote(index, x)
        self.length += count

    def write(self, a, b):
        start, end = sorted((a, b))
        index = self.index(start, end)
        x = self.fresh(index)
        self.t[index] = x
        self.wrote(index, x)
        self.length = max(self.length, end if end > start else 0)

    def write_one_row(self, a, b):
        if self.dim == 0:
            return
        index = (a % self.plain.shape[0], *self.index(b // 2, b // 2 + 3)[1:])
        x = self.fresh(index)
        self.t[index] = x
        self.wrote(index, x)
        self.length = max(self.length, min(TOKENS, b // 2 + 3))

    def read(self, a, b):
        start, end = sorted((a, b))
        self.assert_same(self.t[self.index(start, end)], self.index(start, end))

    def keep(self, a, b):
        index = self.index(*sorted((a, b)))
        view = self.t[index]
        self.kept.append((view, index, view.clone()))

    def drop(self, a, b):
        if self.kept:
            del self.kept[a % len(self.kept)]

    def reserve(self, a, b):
        self.t.reserve(a)

    def truncate(self, a, b):
        self.t.truncate(a)
        self.unsure[self.index(a, TOKENS)] = True
        self.length = min(self.length, a)
        self.settle(a, b)

    def release(self, a, b):
        start, end = sorted((a, b))
        self.t.release(start, end)
        self.unsure[self.index(start, end)] = True
        self.settle(a, b)

    def settle(self, a, b):
        if a % 4:  # or the next step finds the pager at work
            settle(self.pool, still_seconds=0.001)

    def assert_same(self, got, index):
        plain, unsure = self.plain[index], self.unsure[index]
        assert got.shape == plain.shape
        assert torch.where(unsure, (got == plain) | (got == 0), got == plain).all()

    def check(self):
        assert self.t.length == self.length
        for view, _, bytes_ in self.kept:
            assert torch.equal(view, bytes_)
        self.pool.check()


NAMES = "append append write write_one_row read keep drop reserve truncate release release settle"
STEPS = st.tuples(
    st.sampled_from(NAMES.split(" ")),
    st.integers(0, TOKENS),
    st.integers(0, TOKENS),
)


@settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.sampled_from(SHAPES), st.lists(STEPS, min_size=10, max_size=40))
def test_lives(shape, steps):
    life = Life(*shape)
    for name, a, b in steps:
        getattr(life, name)(a, b)
        life.check()
    life.read(0, TOKENS)
    life.kept.clear()
    life.t.close()
    settle(life.pool, still_seconds=0.001)
    assert life.pool.stats().kept_bytes == 0
    life.pool.check()
    life.pool.close()
