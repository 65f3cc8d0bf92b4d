"""A KVTensor and, for comparison, a plain tensor of the same contents and a model of what is mapped."""

import copy
import io
import math
import pickle
from typing import Any

import torch

import vmm

PAGE = 4096


class Twin:
    """``where`` holds, in place of each element, its position in memory: a view of it tells what a view of
    the others covers."""

    def __init__(self, shape: tuple[int, ...], dtype: torch.dtype, grow_dim: int) -> None:
        self.pool = vmm.Pool("16MiB", lookahead_pages=0)
        self.kv: Any = vmm.KVTensor(shape, dtype=dtype, grow_dim=grow_dim, page_bytes=PAGE, pool=self.pool)
        self.plain = torch.zeros(shape, dtype=dtype)
        self.where = torch.arange(math.prod(shape)).view(shape)
        self.grow_dim = grow_dim % len(shape)
        self.record = math.prod(shape[self.grow_dim + 1 :])
        self.row = self.record * shape[self.grow_dim]
        self.pages: set[int] = set()  # mapped
        self.exact = True  # or some of them may not be
        self.length = 0

    def fill(self, start: int, stop: int) -> None:
        """Writes tokens of every row."""
        index = (slice(None),) * self.grow_dim + (slice(start, stop),)
        values = some(self.plain[index].shape, self.plain.dtype)
        self.kv[index] = values
        self.plain[index] = values
        self.wrote(self.where[index])
        self.check()

    def tokens(self, positions: torch.Tensor) -> torch.Tensor:
        return positions % self.row // self.record

    def rows(self, positions: torch.Tensor) -> torch.Tensor:
        return positions // self.row

    def touched(self, positions: torch.Tensor) -> None:
        pages = positions.reshape(-1) * self.plain.dtype.itemsize // PAGE
        self.pages.update(pages.unique().tolist())

    def wrote(self, positions: torch.Tensor) -> None:
        self.touched(positions)
        if positions.numel():
            self.length = max(self.length, 1 + int(self.tokens(positions).max()))

    def check(self) -> None:
        """That what is mapped, and the length, are as expected."""
        mapped, expected = self.kv.mapped_bytes, PAGE * len(self.pages)
        assert mapped == expected if self.exact else mapped <= expected, f"{mapped} mapped, not {expected}"
        assert self.kv.length == self.length, f"length is {self.kv.length}, not {self.length}"

    def check_contents(self) -> None:
        assert_same(self.kv.clone(), self.plain)

    def walks_tokens(self, where: torch.Tensor, dim: int) -> bool | None:
        """Whether a step along ``dim`` of a view leads to another token; None where both answers will do."""
        size = where.shape[dim]
        if where.numel() == 0 or size == 1:
            return None
        first, last = where.select(dim, 0), where.select(dim, size - 1)
        if not torch.equal(self.rows(first), self.rows(last)):
            second = where.select(dim, 1)
            in_rows = not torch.equal(first, second) and torch.equal(self.tokens(first), self.tokens(second))
            return False if in_rows and bool((self.rows(first) != self.rows(second)).all()) else None
        return not torch.equal(self.tokens(first), self.tokens(last))


def some(shape: Any, dtype: torch.dtype, seed: int = 0) -> torch.Tensor:
    """A tensor of small numbers."""
    numbers = torch.randint(-8, 9, tuple(shape), generator=torch.Generator().manual_seed(seed))
    return numbers > 0 if dtype == torch.bool else numbers.to(dtype)


def outcome(work: Any) -> tuple[Any, type[BaseException] | None]:
    """The result of a call, or the type of what it raised."""
    try:
        return work(), None
    except (vmm.OutOfPages, vmm.InvalidArgument):
        raise
    except Exception as error:
        return error, type(error)


def assert_same(got: Any, expected: Any) -> None:
    if isinstance(expected, torch.Tensor):
        got = got.clone() if isinstance(got, vmm.KVTensor) else got
        assert type(got) is torch.Tensor, type(got)
        assert (got.shape, got.dtype) == (expected.shape, expected.dtype)
        assert torch.equal(bits(got), bits(expected)), f"{got}\nexpected {expected}"
    elif isinstance(expected, (tuple, list)):
        assert len(got) == len(expected)
        for one, other in zip(got, expected, strict=True):
            assert_same(one, other)
    elif hasattr(expected, "tobytes"):
        assert got.tobytes() == expected.tobytes()
    else:
        assert got == expected or (math.isnan(got) and math.isnan(expected)), f"{got}, expected {expected}"


def bits(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.detach().reshape(-1).clone(memory_format=torch.contiguous_format).view(torch.uint8)


def saved_and_loaded(tensor: Any, weights_only: bool) -> Any:
    file = io.BytesIO()
    torch.save({"tensor": tensor}, file)
    file.seek(0)
    return torch.load(file, weights_only=weights_only)["tensor"]


COPIES = [
    copy.deepcopy,
    lambda tensor: copy.deepcopy([tensor, tensor])[1],
    lambda tensor: pickle.loads(pickle.dumps(tensor)),
    lambda tensor: saved_and_loaded(tensor, weights_only=True),
    lambda tensor: saved_and_loaded(tensor, weights_only=False),
]


def assert_copies(piece: torch.Tensor, expected: torch.Tensor) -> None:
    """That whatever copies ``piece`` or prints it copies and prints what it shows."""
    assert repr(piece) == repr(expected)
    for copied in COPIES:
        reference, error = outcome(lambda copied=copied: copied(expected))
        made, raised = outcome(lambda copied=copied: copied(piece))
        assert raised == error, made  # torch cannot pickle every dtype
        if not error:
            assert made.data_ptr() != piece.data_ptr() or piece.numel() == 0
            assert_same(made, reference)


def assert_no_larger(piece: torch.Tensor, where: torch.Tensor) -> None:
    """That the storage of a slice ends with its elements."""
    extent = int(where.max() - where.min()) + 1 if where.numel() else 0
    assert piece.untyped_storage().nbytes() <= extent * piece.dtype.itemsize
