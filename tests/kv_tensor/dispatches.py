"""Operations that reach a KVTensor past __torch_function__, each in a child process: with every operation of
the dispatcher that writes, and by every way there is to get to the dispatcher."""

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from isolated import each, example
from torch.utils._python_dispatch import TorchDispatchMode

import vmm

# ruff: noqa: PLW0108 - what is called is said in the same form each time
SHAPE = (3, 2048, 4)  # 32 KiB a row: eight pages, of which the first has something


def _tensors(pool: vmm.Pool) -> tuple[Any, torch.Tensor]:
    ours, plain = vmm.KVTensor(*SHAPE, page_bytes=4096, pool=pool), torch.zeros(SHAPE)
    for tensor in (ours, plain):
        tensor[:, :5] = torch.arange(60.0).view(3, 5, 4)
    return ours, plain


def _argument(kind: str, name: str, shape: tuple[int, ...]) -> Any:
    """Something that fits, often enough."""
    indices = torch.zeros(shape, dtype=torch.int64)
    ones = torch.ones(shape, dtype=torch.bool if "mask" in name or "condition" in name else None)
    known = {
        "Tensor": indices if "ind" in name else ones,
        "List[Tensor]": [ones],
        "List[Optional[Tensor]]": [torch.tensor([1, 2])],
        "bool": False,
        "float": 0.5,
        "str": "sum",
    }
    if kind.startswith("Optional") or kind in {"Generator", "NoneType"}:
        return None
    return known.get(kind, [] if kind.startswith("List[") else 1)


def writing() -> list[Any]:
    """Every operation that writes to an argument that is a tensor, or a list of them."""
    found = []
    for name in torch._C._dispatch_get_all_op_names():
        space, _, rest = name.partition("::")
        if space != "aten":
            continue
        packet, _, overload = rest.partition(".")
        try:
            func = getattr(getattr(torch.ops.aten, packet), overload or "default")
        except AttributeError:
            continue
        if any(a.alias_info is not None and a.alias_info.is_write for a in func._schema.arguments):
            found.append(func)
    return found


def _called(func: Any, tensor: Any, shape: tuple[int, ...]) -> Any:
    args, kwargs = [], {}
    for argument in func._schema.arguments:
        written = argument.alias_info is not None and argument.alias_info.is_write
        kind = str(argument.type)
        if written:
            value = [tensor] if kind.startswith("List") else tensor
        elif argument.has_default_value() and not argument.kwarg_only:
            value = argument.default_value
        else:
            value = _argument(kind, argument.name, shape)
        if argument.kwarg_only:
            if written or not argument.has_default_value():
                kwargs[argument.name] = value
        else:
            args.append(value)
    return func(*args, **kwargs)


def _in_vmap(func: Any, tensor: Any) -> Any:
    def on_row(row: Any) -> Any:
        _called(func, row, SHAPE[1:])
        return row

    return torch.vmap(on_row)(tensor)


WAYS = {"called": lambda func, tensor: _called(func, tensor, SHAPE), "vmap": _in_vmap}


def _agrees(case: tuple[str, Any]) -> str:
    way, func = case
    with vmm.Pool("16MiB", lookahead_pages=0) as pool:
        ours, plain = _tensors(pool)
        done = []
        for tensor in (plain, ours):
            torch.manual_seed(1)
            try:
                WAYS[way](func, tensor)
                done.append(True)
            except Exception:
                done.append(False)
        if done == [True, True] and tuple(plain.shape) == SHAPE:
            assert torch.equal(ours.isnan(), plain.isnan())
            assert torch.equal(ours.nan_to_num(), plain.nan_to_num())
        pool.check()
        return "agrees" if all(done) else "refused"


def _on_plain(case: tuple[str, Any]) -> str:
    WAYS[case[0]](case[1], torch.zeros(SHAPE))
    return "done"


# Random numbers, other shapes, tensors on one another; _weight_norm_interface shows what was not initialised.
_NOT_COMPARABLE = ("_fused", "empty", "resize", "random", "dropout", "_weight_norm_interface")


def _cases(way: str) -> list[tuple[str, Any]]:
    found = [f for f in writing() if not any(part in f._schema.name for part in _NOT_COMPARABLE)]
    if way == "vmap":  # it has no rule for any out=
        found = [f for f in found if not any(argument.is_out for argument in f._schema.arguments)]
    return [(way, func) for func in found]


def check(way: str) -> None:
    warm()
    cases = _cases(way)
    said = dict(zip(cases, each(_agrees, cases), strict=True))
    wrong = [case for case in cases if not said[case].startswith(("agrees", "refused"))]
    # What ends the process with a plain tensor, too, is torch's own.
    ours = [case for case in wrong if not each(_on_plain, [case])[0].startswith("ended by")]
    assert not ours, "\n".join(f"{func} {way}\n{said[way, func][-600:]}" for way, func in ours)
    assert sum(each == "agrees" for each in said.values()) > len(cases) / 3  # or the arguments fit too rarely


class _Watching(TorchDispatchMode):
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return func(*args, **(kwargs or {}))


def _in_mode(t):
    with _Watching():
        t[:, 100:102].fill_(1)
        torch.ops.aten.fill_.Scalar(t, 1)


def _inference(t):
    with torch.inference_mode():
        torch.ops.aten.fill_.Scalar(t, 1)


def _fill(x):
    x.fill_(1)


def _custom(t):
    library = torch.library.Library("vmm_test", "FRAGMENT")
    library.define("fill(Tensor(a!) x) -> ()")
    library.impl("fill", _fill, "CPU")
    torch.ops.vmm_test.fill(t)


def _custom_op(t):
    @torch.library.custom_op("vmm_test::write", mutates_args={"x"})
    def write(x: torch.Tensor) -> None:
        x.numpy()[...] = 1

    write(t)


def _parameter(t):
    torch.nn.Parameter(t, requires_grad=False).data.fill_(1)


def _functional_call(t):
    class Module(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("cache", torch.zeros(1))

        def forward(self):
            self.cache.fill_(1)

    torch.func.functional_call(Module(), {"cache": t}, ())


def _fused(t):
    state = [torch.zeros(SHAPE) for _ in range(2)]
    torch._fused_adamw_(
        [t], [torch.ones(SHAPE)], *[[each] for each in state], [], [torch.tensor(1.0)],
        lr=0.1, beta1=0.9, beta2=0.99, weight_decay=0.0, eps=1e-8, amsgrad=False, maximize=False,
    )  # fmt: skip
    t.fill_(1)


# Each makes all of the tensor ones, or is refused.
FILLS: dict[str, Callable[[Any], Any]] = {
    "vmap": lambda t: torch.vmap(lambda x: x.fill_(1))(t),
    "vmap of a view": lambda t: torch.vmap(lambda x: x[:].fill_(1))(t),
    "vmap in vmap": lambda t: torch.vmap(torch.vmap(lambda x: x.fill_(1)))(t),
    "vmap along tokens": lambda t: torch.vmap(lambda x: x.fill_(1), in_dims=1, out_dims=1)(t),
    "vmap randomly": lambda t: torch.vmap(lambda x: x.bernoulli_(1.0), randomness="different")(t),
    "vmap index_put": lambda t: torch.vmap(
        lambda x: x.index_put_((torch.arange(2048),), torch.ones(()))
    )(t),
    "vmap copy": lambda t: torch.vmap(lambda x, y: x.copy_(y))(t, torch.ones(SHAPE)),
    "functionalize": lambda t: torch.func.functionalize(lambda x: x.fill_(1))(t),
    "functionalize a view": lambda t: torch.func.functionalize(lambda x: x[:, :].fill_(1))(t),
    "grad": lambda t: torch.func.grad(lambda w, x: (x.fill_(1) * w).sum())(torch.ones(()), t),
    "vjp": lambda t: torch.func.vjp(lambda x: x.detach().fill_(1).sum(), t),
    "jvp": lambda t: torch.func.jvp(lambda w: t.detach().fill_(1) * w, (torch.ones(()),), (torch.ones(()),)),
    "data": lambda t: t.data.fill_(1),
    "data of a view": lambda t: t.transpose(0, 1).data.fill_(1),
    "foreach": lambda t: (torch._foreach_zero_([t]), torch._foreach_add_([t], 1)),
    "foreach copy": lambda t: torch._foreach_copy_([t], [torch.ones(SHAPE)]),
    "foreach of views": lambda t: (
        torch._foreach_zero_(list(t.unbind(0))), torch._foreach_add_(list(t.unbind(0)), 1),
    ),
    "fused": _fused,
    "custom library": _custom,
    "custom operation": _custom_op,
    "overload": lambda t: torch.ops.aten.fill_.Scalar(t, 1),
    "packet": lambda t: torch.ops.aten.fill_(t, 1),
    "view, then overload": lambda t: torch.ops.aten.fill_.Scalar(torch.ops.aten.view(t, [-1]), 1),
    "slice, then overload": lambda t: torch.ops.aten.fill_.Scalar(torch.ops.aten.slice(t, 1, 0, 2048), 1),
    "out": lambda t: torch.ones(SHAPE, out=t),
    "out by overload": lambda t: torch.ops.aten.add.out(torch.zeros(SHAPE), 1, out=t),
    "dispatch mode": _in_mode,
    "inference mode": _inference,
    "parameter": _parameter,
    "functional_call": _functional_call,
    "numpy": lambda t: t.numpy().fill(1),
    "asarray": lambda t: np.asarray(t).fill(1),
    "dlpack": lambda t: torch.from_dlpack(t).fill_(1),
    "numpy dlpack": lambda t: np.from_dlpack(t),
    "as_strided": lambda t: torch.as_strided(t, SHAPE, t.stride()).fill_(1),
    "as_strided by overload": lambda t: torch.ops.aten.as_strided(t, SHAPE, t.stride()).fill_(1),
    "scatter": lambda t: torch.ops.aten.scatter_.value(
        t, 1, torch.arange(2048).view(1, -1, 1).expand(SHAPE), 1
    ),
    "index_put": lambda t: torch.ops.aten.index_put_(t, [torch.arange(3)], torch.ones(())),
    "masked": lambda t: torch.ops.aten.masked_fill_.Scalar(t, torch.ones(SHAPE, dtype=torch.bool), 1),
    "set_": lambda t: torch.ops.aten.set_.source_Tensor(t, torch.ones(SHAPE)),
    "resize_": lambda t: torch.ops.aten.resize_(t, [1]),
    "share_memory_": lambda t: t.share_memory_(),
    "C++ resize_": lambda t: torch.resize_as_(t, torch.ones(1)),
    "untyped storage": lambda t: t.untyped_storage().fill_(0),
    "untyped storage item": lambda t: t.untyped_storage().__setitem__(-1, 0),
    "storage": lambda t: t.storage().fill_(1),
    "storage item": lambda t: t.storage().__setitem__(slice(None), 1),
    "storage shared": lambda t: t.untyped_storage().share_memory_(),
    "set_ from it": lambda t: torch.empty(0).set_(t).fill_(1),
    "set_ over the storage": lambda t: torch.empty(0).set_(t.untyped_storage(), 0, SHAPE).fill_(1),
    "set_ over the storage by overload": lambda t: torch.ops.aten.set_.source_Storage_storage_offset(
        torch.empty(0), t.untyped_storage(), 0, SHAPE
    ).fill_(1),
    "a capsule": lambda t: torch.from_dlpack(torch.utils.dlpack.to_dlpack(t)).fill_(1),
    "a capsule of a view": lambda t: torch.from_dlpack(torch.utils.dlpack.to_dlpack(t[:, 1:])).fill_(1),
    "another class": lambda t: torch.Tensor._make_subclass(torch.Tensor, t).fill_(1),
    "swapped": lambda t: torch.utils.swap_tensors(t, torch.ones(SHAPE)),
}  # fmt: skip


def warm() -> None:
    """What torch imports on first use, once for all children."""
    x = torch.ones(2)
    for transform in (torch.vmap, torch.func.grad, torch.func.functionalize):
        transform(lambda x: x.sum() + 0)(x)
    torch.func.jvp(lambda x: x * 2, (x,), (x,))
    torch.library.custom_op("vmm_test::nothing", lambda x: None, mutates_args=(), schema="(Tensor x) -> ()")(
        x
    )


def _fills(case: tuple[str, str]) -> None:
    name, budget = case
    with vmm.Pool(budget, lookahead_pages=0) as pool:
        t, _ = _tensors(pool)
        before = t[:, :5].clone()
        try:
            FILLS[name](t)
        except (
            vmm.OutOfPages,
            vmm.InvalidArgument,
            RuntimeError,
            BufferError,
            TypeError,
            NotImplementedError,
        ):
            assert torch.equal(t[:, :5], before)
            assert t[:, 5:9].eq(0).all()
        else:
            assert name == "numpy dlpack" or t.eq(1).all()
        pool.check()


def check_fills() -> None:
    warm()
    wrong = []
    for name, budget in itertools.product(FILLS, ("16MiB", "32KiB")):
        try:
            example(_fills, (name, budget))
        except AssertionError as error:
            wrong.append(f"{name} in {budget}\n{str(error)[-900:]}")
    assert not wrong, "\n".join(wrong)
