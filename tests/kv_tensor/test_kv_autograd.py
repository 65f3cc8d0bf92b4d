"""Gradients through a KVTensor, and the errors that protect them: torch.empty's own."""

import pytest
import torch

from vmm import KVTensor
from vmm.testing import settle

SHAPE = (2, 50, 3)


@pytest.fixture(params=["torch", "vmm"])
def empty(request, make):
    """Each test holds for both."""
    return (lambda: torch.zeros(SHAPE)) if request.param == "torch" else lambda: make(*SHAPE)


def leaf(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).requires_grad_()


IN_PLACE = {
    "write": lambda t: t.__setitem__((slice(None), slice(0, 2)), 1.0),
    "write a tensor": lambda t: t.__setitem__((0, 1), torch.ones(3)),
    "write at positions": lambda t: t.__setitem__(torch.tensor([0]), 1.0),
    "write a slice": lambda t: t[:, :3].add_(1),
    "write all": lambda t: t.add_(1),
    "iadd": lambda t: t.__iadd__(1),
    "fill": lambda t: t.fill_(1),
    "zero": lambda t: t.zero_(),
    "copy": lambda t: t.copy_(torch.ones(SHAPE)),
    "index_copy": lambda t: t.index_copy_(1, torch.tensor([0]), torch.ones(2, 1, 3)),
    "write a view": lambda t: t.transpose(0, 1)[0].add_(2),
}


@pytest.mark.parametrize("name", IN_PLACE)
def test_in_place_on_a_leaf_that_requires_grad(empty, name):
    t = empty().requires_grad_()
    with pytest.raises(RuntimeError, match=r"leaf Variable that requires grad"):
        IN_PLACE[name](t)
    with torch.no_grad():
        assert t[:, :50].eq(0).all()
        IN_PLACE[name](t)
        if name != "zero":
            assert not t[:, :50].eq(0).all()


def test_append_to_a_leaf_that_requires_grad(make):
    t = make(*SHAPE).requires_grad_()
    with pytest.raises(RuntimeError, match="leaf Variable that requires grad"):
        t.append(torch.ones(2, 1, 3))
    assert t.length == 0
    with torch.no_grad():
        t.append(torch.ones(2, 1, 3))
    assert t.length == 1


USES = {
    "a slice": lambda t: t[:, :6].square(),
    "an element": lambda t: t[1, 3].square(),
    "an open slice": lambda t: t[:, 2:][:, :4].square(),
    "positions": lambda t: t[:, torch.tensor([0, 3, 3])].square(),
    "a mask": lambda t: t[torch.tensor([True, False])].square(),
    "all of it": lambda t: t.square(),
    "a view": lambda t: t.transpose(1, 2)[:, :, 1:5].square(),
    "narrow": lambda t: t.narrow(1, 1, 4).square(),
    "index_select": lambda t: t.index_select(1, torch.tensor([5, 0])).square(),
    "an iteration": lambda t: sum(row[:5].square().sum() for row in t),
    "reshaped": lambda t: t.reshape(2, 150)[:, :18].square(),
}


@pytest.mark.parametrize("use", USES)
@pytest.mark.parametrize("how", ["index", "advanced", "view", "copy"])
def test_gradients_of_what_was_written(make, use, how):
    gradients = []
    for t in (torch.zeros(SHAPE), make(*SHAPE)):
        x, y = leaf(2, 6, 3), leaf(2, 3, seed=1)
        if how == "index":
            t[:, :6] = x
        elif how == "advanced":
            t[:, torch.arange(6)] = x
        elif how == "view":
            t.transpose(0, 1)[:6] = x.transpose(0, 1)
        else:
            t.copy_(torch.nn.functional.pad(x, (0, 0, 0, 44)))
        t[:, 3] = y * 2
        USES[use](t).sum().backward()
        gradients.append((x.grad, y.grad))
    for expected, ours in zip(*gradients, strict=True):
        assert torch.equal(ours, expected)


def test_gradients_of_what_was_appended(make):
    t, x, y = make(*SHAPE), leaf(2, 4, 3), leaf(2, 1, 3, seed=1)
    t.append(torch.ones(2, 2, 3))
    t.append(x)
    t.append(y)
    assert t.length == 7
    (t[:, :7] * torch.arange(7.0)[:, None]).sum().backward()
    assert torch.equal(x.grad, torch.arange(2.0, 6)[None, :, None].expand(2, 4, 3))
    assert y.grad.eq(6).all()


@pytest.mark.parametrize("use", USES)
def test_gradients_of_a_leaf(make, use):
    gradients = []
    for t in (torch.zeros(SHAPE), make(*SHAPE)):
        t[:, :6] = leaf(2, 6, 3).detach()
        t.requires_grad_()
        USES[use](t).sum().backward()
        assert t.is_leaf
        gradients.append(t.grad)
    assert torch.equal(*gradients)


OVERWRITES = {
    "index": lambda t: t.__setitem__((slice(None), 2), 7.0),
    "positions": lambda t: t.__setitem__((0, torch.tensor([1])), 7.0),
    "all": lambda t: t.fill_(7),
    "zero": lambda t: t.zero_(),
    "copy": lambda t: t.copy_(torch.ones(SHAPE)),
    "another slice": lambda t: t[:, :3].add_(1),
    "view": lambda t: t.transpose(0, 1)[0].add_(1),
    "append": lambda t: t.append(torch.ones(2, 1, 3)) if isinstance(t, KVTensor) else t[:, 6:7].fill_(1),
    "index_fill": lambda t: t.index_fill_(1, torch.tensor([0]), 1.0),
}


@pytest.mark.parametrize("overwrite", OVERWRITES)
@pytest.mark.parametrize("mode", [torch.enable_grad, torch.no_grad])
def test_overwriting_what_backward_needs(empty, overwrite, mode):
    """Also what was sliced, or overwritten, while gradients were off."""
    t, w = empty(), leaf(2, 6, 3)
    t[:, :6] = torch.ones(2, 6, 3)
    with mode():
        keys = t[:, :6]
    loss = (w * keys).sum()
    OVERWRITES[overwrite](t)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_not_overwriting_it(empty):
    t, w = empty(), leaf(2, 6, 3)
    t[:, :6] = torch.ones(2, 6, 3)
    loss = (w * t[:, :6].clone()).sum()
    t[:, 2] = 7.0
    loss.backward()
    assert w.grad.eq(1).all()


@pytest.mark.parametrize("let_go", ["truncate", "release", "close", "del"])
def test_what_backward_needs_outlives_releases(pool, make, let_go):
    """Recorded views have no pin each: the storage that they share has one for all."""
    t, x = make(2, 5000, 3), leaf(2, 4000, 3)
    t[:, :4000] = x
    held = t[:, :4000].detach()
    loss = t[:, :4000].square().sum()
    if let_go == "del":
        del t
    else:
        getattr(t, let_go)(*{"truncate": (0,), "release": (0, 5000), "close": ()}[let_go])
    settle(pool, still_seconds=0.01)
    assert torch.equal(held, x.detach())
    loss.backward()
    assert torch.equal(x.grad, 2 * x.detach())
    t = loss = held = None
    settle(pool, still_seconds=0.01)
    assert pool.stats().kept_bytes == 0
