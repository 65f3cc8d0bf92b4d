"""torch's kernels for what an index selects, on a tensor of which no more is mapped: some write it all."""

import itertools
from collections.abc import Callable
from typing import Any

import torch
from isolated import every
from twin import PAGE, Twin, bits

HALF = {torch.bfloat16, torch.float16}
Write = Callable[[Any, int, torch.Tensor, torch.Tensor, torch.Tensor], Any]  # x, dim, index, ones, line


def _slices(x: Any, dim: int) -> torch.Tensor:
    return torch.ones([1 if i == dim else size for i, size in enumerate(x.shape)]).to(x.dtype)


SCATTERING: dict[str, Write] = {
    "scatter": lambda x, dim, index, ones, line: x.scatter_(dim, index, ones),
    "scatter keywords": lambda x, dim, index, ones, line: x.scatter_(dim=dim, index=index, src=ones),
    "scatter number": lambda x, dim, index, ones, line: x.scatter_(dim, index, 1),
    "scatter value": lambda x, dim, index, ones, line: torch.Tensor.scatter_(x, dim, index, value=1),
}
SUMMING: dict[str, Write] = {
    "scatter add": lambda x, dim, index, ones, line: x.scatter_(dim, index, ones, reduce="add"),
    "scatter_add": lambda x, dim, index, ones, line: x.scatter_add_(dim, index, ones),
    "scatter_reduce": lambda x, dim, index, ones, line: x.scatter_reduce_(dim, index, ones, "amax"),
    "index_add": lambda x, dim, index, ones, line: x.index_add_(dim, line, _slices(x, dim)),
    "index_reduce": lambda x, dim, index, ones, line: x.index_reduce_(dim, line, _slices(x, dim), "amax"),
}
AVERAGING: dict[str, Write] = {
    "scatter mean": lambda x, dim, index, ones, line: x.scatter_reduce_(dim, index, ones, "mean"),
    "scatter mean keyword": lambda x, dim, index, ones, line: x.scatter_reduce_(
        dim, index, ones, reduce="mean", include_self=False
    ),
    "index mean": lambda x, dim, index, ones, line: x.index_reduce_(dim, line, _slices(x, dim), "mean"),
}
COPYING: dict[str, Write] = {
    "index_copy": lambda x, dim, index, ones, line: x.index_copy_(dim, line, _slices(x, dim)),
    "index_fill": lambda x, dim, index, ones, line: x.index_fill_(dim, line, 1),
    "index_put": lambda x, dim, index, ones, line: x.index_put_((line,), ones.flatten()[0]),
    "index_put add": lambda x, dim, index, ones, line: x.index_put_(
        (line,), ones.flatten()[0], accumulate=True
    ),
    "set": lambda x, dim, index, ones, line: x.__setitem__((slice(None),) * dim + (line,), 1),
    "set mask": lambda x, dim, index, ones, line: x.__setitem__(torch.arange(x.shape[0]) == 3, 1),
}


def _check(case: tuple[str, Write, tuple[int, ...], int, torch.dtype, int]) -> None:
    name, write, shape, dim, dtype, count = case
    twin = Twin(shape, dtype, 1)
    index, line = torch.full((count,) * len(shape), 3), torch.tensor([3])
    ones = torch.ones((count,) * len(shape)).to(dtype)
    write(twin.kv, dim, index, ones, line)
    write(twin.plain, dim, index, ones, line)
    mapped = twin.kv.mapped_bytes // PAGE
    now = twin.kv.clone()
    assert torch.equal(bits(now), bits(twin.plain))
    whole = twin.kv.mapped_bytes // PAGE
    if name in SCATTERING:
        assert mapped <= count ** len(shape) < whole
    elif name in COPYING or (name in SUMMING and dtype not in HALF):
        assert mapped < whole or dim  # of a slice along tokens, pages may hold no other


def check(*dtypes: str) -> None:
    writes = SCATTERING | SUMMING | AVERAGING | COPYING
    every(
        _check,
        {
            f"{name} {shape} {dim} {dtype}": (name, writes[name], shape, dim, getattr(torch, dtype), 2)
            for dtype, name, shape in itertools.product(dtypes, writes, [(9, 4096), (9, 70, 64)])
            for dim in range(len(shape))
        },
    )
