"""One index expression, read and written, against a plain tensor."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import example as hypothesis_example
from hypothesis import strategies as st
from isolated import Tried, search
from strategies import DTYPES, indices, shapes
from twin import Twin, assert_copies, assert_no_larger, assert_same, outcome, some

import vmm

SETTINGS = settings(deadline=None, database=None, suppress_health_check=list(HealthCheck))


@dataclass
class Case:
    shape: tuple[int, ...]
    dtype: str
    grow_dim: int
    fill: tuple[int, int]
    index: str
    value: str  # of a write: what it is, given the shape that the index selects


@st.composite
def cases(draw: Any) -> Case:
    shape = draw(shapes())
    grow_dim = draw(st.integers(-len(shape), len(shape) - 1))
    start, stop = sorted(draw(st.tuples(*[st.integers(0, shape[grow_dim])] * 2)))
    dtype, value = draw(st.sampled_from(DTYPES)), draw(st.sampled_from(VALUES))
    return Case(shape, dtype, grow_dim, (start, stop), draw(indices(shape)), value)


VALUES = [
    "1",
    "2.5",
    "True",
    "300",
    "torch.tensor(3)",
    "some(s, d, 1)",
    "some(s, d, 1)",
    "some(s, torch.float32, 1)",
    "some((1, *s), d, 1)",
    "some(s[1:], d, 1)",
    "some(s[-1:], d, 1)",
    "some([1] * len(s), d, 1)",
    "some([1, *s[1:]], d, 1)",
    "some([3, *s], d, 1)",
    "some([5], d, 1)",
    "[1, 2]",
    "'a'",
    "None",
]


REGRESSIONS = [
    Case((3, 700, 3), "float32", 1, (0, 5), index, value)
    for index, value in [
        ("0, 5:", "1"),
        ("2, 600:, [0, 2]", "1"),
        ("2, torch.tensor([3, -1])", "some(s, d)"),
        ("2, [[True] + [False] * 699]", "1"),
        ("2, 600:, True", "1"),
        ("0, 0, False", "1"),
        ("1:, [699], 600", "1"),
        ("2:2, [9999]", "1"),
        ("[[0, 1], [1, 699]]", "1"),
        ("torch.tensor([[0], [9]]), []", "1"),
        ("np.array([0, 2]), np.int64(600)", "1"),
        ("torch.tensor(1.5)", "1"),
        ("3:, -1", "1"),
        ("1, 600:690", "some([5], d)"),
        ("1, 600:690", "[1, 2]"),
    ]
] + [
    Case((3, 9000), "int8", 1, (0, 5), "1, 600:690", "300"),
    Case((9, 61), "float32", 1, (0, 0), "9:, -1", "1"),
]


def mask(shape: tuple[int, ...], kept: int, seed: int) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed)) < kept / 10


NAMES = {"torch": torch, "np": np, "mask": mask, "some": some}


def picked(tensor: Any, index: str) -> Any:
    return eval(f"x[{index}]", NAMES, {"x": tensor})


def entries_of(index: str) -> list[Any]:
    class Asked:
        def __getitem__(self, asked: Any) -> Any:
            return asked

    asked = picked(Asked(), index)
    return list(asked) if type(asked) is tuple else [asked]


def is_integer(entry: Any) -> bool:
    if isinstance(entry, torch.Tensor):
        return entry.dim() == 0 and entry.dtype not in {torch.bool, torch.uint8}
    return isinstance(entry, (int, np.integer)) or (isinstance(entry, np.ndarray) and entry.ndim == 0)


def is_basic(entries: list[Any]) -> bool:
    def basic(entry: Any) -> bool:
        return entry is None or entry is ... or isinstance(entry, slice) or is_integer(entry)

    return all(basic(entry) and not isinstance(entry, bool) for entry in entries)


def bounded_dims(entries: list[Any], ndim: int) -> list[int]:
    """The dimensions on which a basic index ends somewhere."""
    addressing = [entry for entry in entries if entry is not None and entry is not ...]
    dims = list(range(ndim))
    if ... in [entry for entry in entries if entry is ...]:
        after = len([e for e in entries[[e is ... for e in entries].index(True) :] if e is not None]) - 1
        dims = dims[: len(addressing) - after] + dims[ndim - after :]
    return [
        dim
        for dim, entry in zip(dims, addressing, strict=False)
        if not isinstance(entry, slice) or entry.stop is not None
    ]


def made_twin(case: Case) -> Twin:
    twin = Twin(case.shape, getattr(torch, case.dtype), case.grow_dim)
    if case.fill[0] < case.fill[1]:
        twin.fill(*case.fill)
    return twin


def check_read(case: Case) -> None:
    twin = made_twin(case)
    entries = entries_of(case.index)
    expected, error = outcome(lambda: picked(twin.plain, case.index))
    got, raised = outcome(lambda: picked(twin.kv, case.index))
    assert raised == error, (got, expected)
    if error:
        assert twin.kv.length == twin.length
        if is_basic(entries):
            twin.check()
        return twin.check_contents()
    where = picked(twin.where, case.index)
    if is_basic(entries) and twin.grow_dim not in bounded_dims(entries, len(case.shape)):
        assert type(got) is vmm.KVTensor
        assert (got.shape, got.stride(), got.storage_offset()) == (
            expected.shape,
            expected.stride(),
            expected.storage_offset(),
        )
        twin.check()
        assert_same(got, expected)
        twin.touched(where)
        return twin.check()
    assert type(got) is torch.Tensor
    assert_same(got, expected)
    twin.touched(where)
    twin.check()
    if is_basic(entries):
        check_slice(twin, got, expected, where)
    return twin.check_contents()


def check_slice(twin: Twin, got: torch.Tensor, expected: torch.Tensor, where: torch.Tensor) -> None:
    assert got.stride() == expected.stride()
    assert_no_larger(got, where)
    if where.numel():
        offset = int(where.reshape(-1)[0]) * expected.itemsize
        assert got.data_ptr() == twin.kv.data_ptr() + offset
    assert_copies(got, expected)
    got.fill_(1)
    expected.fill_(1)
    twin.check()


def check_write(case: Case) -> None:
    twin = made_twin(case)
    entries = entries_of(case.index)
    shape, error = outcome(lambda: picked(twin.plain, case.index).shape)
    value = 1 if error else eval(case.value, {**NAMES, "s": shape, "d": twin.plain.dtype})

    def write(tensor: Any) -> None:
        exec(f"x[{case.index}] = value", NAMES, {"x": tensor, "value": value})

    before = twin.plain.clone()
    _, error = outcome(lambda: write(twin.plain))
    got, raised = outcome(lambda: write(twin.kv))
    assert raised == error, got
    if error:
        assert twin.kv.length == twin.length
        if is_basic(entries):
            twin.check()
        assert_same(twin.kv.clone(), before)
        return
    twin.wrote(picked(twin.where, case.index))
    twin.check()
    twin.check_contents()


def reads(examples: int) -> None:
    _run(check_read, examples)


def writes(examples: int) -> None:
    _run(check_write, examples)


def _run(check: Any, examples: int) -> None:
    def look(tried: Tried, number: int) -> None:
        @seed(number)
        @settings(SETTINGS, max_examples=examples)
        @given(cases())
        def each(case: Case) -> None:
            tried(check, case)

        for case in REGRESSIONS:
            each = hypothesis_example(case)(each)
        each()

    search(look)
