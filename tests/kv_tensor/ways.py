"""Every way to get to torch's dispatcher past __torch_function__, and past that to a KVTensor's memory."""

import itertools
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import torch
from isolated import every
from torch.utils._python_dispatch import TorchDispatchMode

import vmm

# ruff: noqa: PLW0108 - what is called is said in the same form each time
SHAPE = (3, 2048, 4)  # 32 KiB a row: eight pages, of which the first has something


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


@cache
def _library():
    library = torch.library.Library("vmm_test", "FRAGMENT")
    library.define("fill(Tensor(a!) x) -> ()")
    library.impl("fill", _fill, "CPU")
    return library


def _custom(t):
    _library()
    torch.ops.vmm_test.fill(t)


@cache
def _custom_op():
    @torch.library.custom_op("vmm_test::write", mutates_args={"x"})
    def write(x: torch.Tensor) -> None:
        x.numpy()[...] = 1

    return write


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
    "custom operation": lambda t: _custom_op()(t),
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


def _fills(case: tuple[str, str]) -> None:
    name, budget = case
    with vmm.Pool(budget, lookahead_pages=0) as pool:
        t: Any = vmm.KVTensor(*SHAPE, page_bytes=4096, pool=pool)
        t[:, :5] = torch.arange(60.0).view(3, 5, 4)
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
    every(
        _fills,
        {
            f"{name} in {budget}": (name, budget)
            for name, budget in itertools.product(FILLS, ("16MiB", "32KiB"))
        },
    )
