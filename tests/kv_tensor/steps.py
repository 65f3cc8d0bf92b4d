"""Operations on a tensor ``x``, as Python source: views, reads and writes."""

from dataclasses import dataclass
from typing import Any

import torch
from hypothesis import strategies as st
from strategies import basic_indices, indices


@dataclass
class Step:
    source: int  # which of the tensors at hand is x
    kind: str  # view, read or write
    code: str
    touched: str = "x"  # of the positions x: those that are mapped at most
    exact: bool = True  # ... and at least
    sums: bool = False  # torch writes all where it computes with half precision, though it changes no more


def _dim(draw: Any, x: torch.Tensor) -> int:
    return draw(st.integers(-x.dim(), x.dim() - 1)) if x.dim() else 0


def views(draw: Any, x: torch.Tensor) -> str:
    """Source of a view, or a copy where torch has to make one, of a tensor like x."""
    shape, numel = tuple(x.shape), x.numel()
    d, e = _dim(draw, x), _dim(draw, x)
    size = shape[d] if shape else 0
    start = draw(st.integers(0, size))
    length = draw(st.integers(0, size - start))
    order = draw(st.permutations(range(x.dim())))
    i = draw(st.integers(0, max(0, size - 1)))
    pieces = draw(st.integers(1, max(1, size)))
    ahead, after = sorted((d % max(1, x.dim()), e % max(1, x.dim())))
    index = draw(basic_indices(shape))
    return draw(
        st.sampled_from(
            [
                *[f"x[{index}]"] * 6,
                f"x.transpose({d}, {e})",
                f"torch.transpose(x, dim0={d}, dim1={e})",
                f"x.swapaxes({d}, {e})",
                f"x.permute({order})",
                f"torch.permute(x, {order})",
                f"x.movedim({d}, {e})",
                "x.mT" if x.dim() >= 2 else "x.view(-1)",
                "x.view(-1)",
                f"x.view({numel}, 1)",
                f"x.view({shape})",
                f"x.reshape(-1, {max(1, shape[-1] if shape else 1)})",
                "torch.reshape(x, (-1,))",
                f"x.unsqueeze({d})",
                f"torch.unsqueeze(x, dim={d})",
                "x.squeeze()",
                f"x.squeeze({d})",
                f"x.flatten({ahead}, {after})",
                f"torch.flatten(x, start_dim={ahead})",
                f"x.unflatten({d}, ({pieces}, -1))",
                f"x[None].expand(2, *{shape})",
                f"x.expand({shape})",
                f"x.split({pieces}, {d})[0]",
                f"torch.split(x, split_size_or_sections={pieces}, dim={d})[-1]",
                f"x.chunk({pieces}, dim={d})[-1]",
                f"x.tensor_split({pieces}, dim={d})[0]",
                f"x.unbind({d})[{i}]",
                f"x.narrow({d}, {start}, {length})",
                f"x.narrow(dim={d}, start={start}, length={length})",
                f"torch.narrow(x, {d}, start={start}, length={length})",
                f"torch.narrow(input=x, dim={d}, start={start}, length={length})",
                f"x.select({d}, {i})",
                f"x.select({d}, index={i})",
                f"torch.select(x, dim={d}, index={i})",
                f"x.diagonal(0, {d}, {e})",
                f"x.unfold({d}, {min(2, size)}, 1)",
                "x.detach()",
                "x.data",
                "x.contiguous()",
                "x.ravel()",
                "x.view_as(x)",
                "list(x)[0]",
                "x.T" if x.dim() == 2 else "x.detach()",
            ]
        )
    )


def _positions(draw: Any, size: int, shape: Any) -> str:
    low, high = (-1, size) if draw(st.integers(0, 20)) == 20 else (0, max(0, size - 1))
    seed = draw(st.integers(0, 5))
    return (
        f"torch.randint({low}, {high + 1}, {tuple(shape)}, generator=torch.Generator().manual_seed({seed}))"
    )


def _smaller(draw: Any, x: torch.Tensor) -> tuple[int, ...]:
    """No larger than x in any dimension."""
    return tuple(draw(st.integers(0, min(size, 3))) for size in x.shape)


def selections(draw: Any, x: torch.Tensor, source: int) -> Step:
    """What an index tensor selects."""
    d = _dim(draw, x)
    size = x.shape[d] if x.dim() else 1
    count = draw(st.integers(0, 3))
    along = _positions(draw, size, (count,))
    shape = list(x.shape)
    if shape:
        shape[d] = count
    some = f"some({tuple(shape)}, x.dtype, 2)"
    slices = f"x.index_select({d}, {along})"
    grid = _smaller(draw, x)
    at = _positions(draw, size, grid)
    few = f"some({grid}, x.dtype, 3)"
    elements = f"x.gather({d}, {at})"
    index = draw(indices(tuple(x.shape)))
    spot = ", ".join(_positions(draw, part, (2,)) for part in x.shape[:2])
    return draw(
        st.sampled_from(
            [
                Step(source, "read", f"x[{index}].clone()", f"x[{index}]"),
                Step(source, "write", f"x.__setitem__(key({index!r}), 1)", f"x[{index}]"),
                Step(source, "read", slices, slices),
                Step(source, "read", f"torch.index_select(x, dim={d}, index={along})", slices),
                Step(source, "read", elements, elements),
                Step(source, "read", f"torch.gather(x, {d}, index={at})", elements),
                Step(source, "read", f"torch.take_along_dim(x, {at}, {d})"),
                Step(
                    source, "read", f"torch.gather(x, {d}, {at}, out=torch.empty(0, dtype=x.dtype))", elements
                ),
                Step(source, "write", f"x.index_copy_({d}, {along}, {some})", slices),
                Step(source, "write", f"x.index_add_({d}, {along}, {some})", slices, sums=True),
                Step(
                    source, "write", f"x.index_add_(dim={d}, index={along}, source={some})", slices, sums=True
                ),
                Step(source, "write", f"x.index_fill_({d}, {along}, 1)", slices),
                Step(source, "write", f"x.scatter_({d}, {at}, {few})", elements),
                Step(source, "write", f"x.scatter_({d}, {at}, 1)", elements),
                Step(source, "write", f"x.scatter_({d}, {at}, {few}, reduce='add')", elements, sums=True),
                Step(source, "write", f"x.scatter_reduce_({d}, {at}, {few}, 'mean')", elements, exact=False),
                Step(source, "write", f"x.index_reduce_({d}, {along}, {some}, 'mean')", slices, exact=False),
                Step(source, "write", f"x.scatter_({d}, index={at}, src={few})", elements),
                Step(source, "write", f"x.scatter_add_({d}, {at}, {few})", elements, sums=True),
                Step(source, "write", f"x.scatter_reduce_({d}, {at}, {few}, 'amax')", elements, sums=True),
                Step(source, "write", f"x.index_put_(({spot},), torch.tensor(1).to(x.dtype))", f"x[{spot}]"),
                Step(
                    source,
                    "write",
                    f"torch.index_put_(x, ({spot},), torch.tensor(1).to(x.dtype), accumulate=True)",
                    f"x[{spot}]",
                ),
            ]
            if x.dim()
            else [Step(source, "read", "x.item()")]
        )
    )


READS = [
    "x.sum()",
    "torch.sum(x, 0)",
    "x.matmul(x.transpose(-1, -2))",
    "torch.cat([x, x])",
    "torch.cat((x, some(x.shape, x.dtype)), dim=-1)",
    "torch.stack([some(x.shape, x.dtype), x])",
    "F.scaled_dot_product_attention(x, x, x)",
    "torch.where(x == 0, x, some(x.shape, x.dtype))",
    "x.numpy()",
    "np.asarray(x)",
    "x.tolist()",
    "x.clone()",
    "torch.clone(x)",
    "x == x",
    "-x",
    "x + 1",
    "1 + x",
    "some(x.shape, x.dtype).add(x)",
    "some(x.shape, x.dtype).copy_(x)",
    "some(x.shape, x.dtype).__setitem__(..., x)",
    "torch.add(x, 1, out=torch.empty(0, dtype=x.dtype))",
    "x.abs().max()",
    "x.nonzero()",
    "x.any()",
    "torch.equal(x, x.clone())",
    "x.flip(0)",
    "x.sort(-1)",
    "x.masked_fill(x == 0, 1)",
    "x.masked_select(x == 0)",
    "x[x == 0]",
    "x.repeat(2, *[1] * x.dim())",
    "x.softmax(-1)",
    "F.relu(x)",
    "torch.einsum('...i->...', x)",
    "0 in x",
]
FREE = [  # these map nothing
    "len(x)",
    "x.shape",
    "x.stride()",
    "x.numel()",
    "x.is_contiguous()",
    "x.element_size()",
    "torch.is_tensor(x)",
    "torch.empty_like(x).shape",
    "torch.zeros_like(x)",
    "x.new_zeros(2)",
    "copy.deepcopy(x)",
    "pickle.loads(pickle.dumps(x))",
    "(repr(x), str(x), f'{x}', print(x, file=io.StringIO()))[4:]",
    "x.to('cpu')",
    "x.cpu().to(x.dtype)",
]
SAFE = [  # these may map x or not, or a part of it
    "list(x)[-1].clone()",
    "copy.copy(x)",
    "x.float()",
    "x.bool()",
    "x.to(torch.float32) @ x.to(torch.float32).transpose(-1, -2)",
    "x.to(torch.float64).sum(-1)",
    "torch.tensor(x)",
    "torch.as_tensor(x)",
    "torch.as_tensor(x, dtype=torch.float64)",
    "torch.zeros(1, dtype=x.dtype).new_tensor(x)",
    "x.new_tensor(x)",
    "x.view(torch.uint8).sum()",
    "x.to(torch.bfloat16)",
    "x.to(torch.float64)",
    "x.to(x.dtype, copy=True)",
    "saved_and_loaded(x, False)",
    "saved_and_loaded(x, True)",
]
WRITES = [
    "x.copy_(some(x.shape, x.dtype, 5))",
    "x.copy_(some(x.shape[-1:], x.dtype, 5))",
    "x.copy_(some(x.shape, torch.float32, 5))",
    "x.fill_(1)",
    "torch.fill_(x, 1)",
    "x.add_(1)",
    "x.mul_(some(x.shape, x.dtype, 6))",
    "operator.iadd(x, 1)",
    "operator.imul(x, some(x.shape[-1:], x.dtype, 6))",
    "x.masked_fill_(x == 0, 1)",
    "x.masked_fill_(mask(tuple(x.shape), 4, 1), 1)",
    "x.clamp_(0, 1)",
    "torch.add(some(x.shape, x.dtype, 7), 1, out=x)",
    "torch.cat([some(x.shape, x.dtype, 8)], out=x)",
    "F.relu(x, inplace=True)",
    "torch.relu_(x)",
    "x.neg_()",
    "x.masked_scatter_(x == 0, some([x.numel()], x.dtype))",
]


def steps(draw: Any, x: torch.Tensor, source: int) -> Step:
    kind = draw(st.integers(0, 9))
    if kind < 4:
        return Step(source, "view", views(draw, x))
    if kind < 7:
        return selections(draw, x, source)
    if kind == 7:
        return Step(source, "write", draw(st.sampled_from([*WRITES, "x.zero_()"])))
    return draw(
        st.sampled_from([Step(source, "read", code) for code in READS])
        | st.sampled_from(
            [Step(source, "read", code, "x[:0]" if x.dim() else "x.new_empty(0)") for code in FREE]
        )
        | st.sampled_from([Step(source, "read", code, exact=False) for code in SAFE])
    )
