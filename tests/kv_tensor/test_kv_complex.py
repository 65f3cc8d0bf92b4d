"""Views that show conjugates or negatives of what is in memory."""

import copy
import pickle

import pytest
import torch

VIEWS = {
    "mH": lambda x: x.mH,
    "adjoint": lambda x: x.adjoint(),
    "conjugates": torch.ops.aten._conj,
    "negatives": torch.ops.aten._neg_view,
    "both": lambda x: torch.ops.aten._neg_view(x).mH,
}


@pytest.fixture
def pair(make):
    ours, plain = make(2, 512, 4, dtype=torch.complex64), torch.zeros(2, 512, 4, dtype=torch.complex64)
    ours[:, :9] = plain[:, :9] = torch.randn(2, 9, 4, dtype=torch.complex64)
    return ours, plain


@pytest.mark.parametrize("name", VIEWS)
def test_views_show_what_those_of_a_plain_tensor_do(pair, name):
    ours, plain = map(VIEWS[name], pair)
    dim = plain.shape.index(512)
    assert torch.equal(ours.narrow(dim, 0, 9), plain.narrow(dim, 0, 9))
    assert torch.equal(ours + 0, plain + 0)
    assert torch.equal(ours.index_select(dim, torch.tensor([3, 5])), plain[(slice(None),) * dim + ([3, 5],)])
    assert torch.equal(torch.ops.aten.add.Tensor(ours, 0), plain + 0)


@pytest.mark.parametrize("name", VIEWS)
def test_writes_through_views(pair, name):
    for tensor in pair:
        view = VIEWS[name](tensor)
        dim = view.shape.index(512)
        view[(slice(None),) * dim + (slice(2, 4),)] = 1 + 2j
        view.narrow(dim, 5, 1).mul_(2 + 1j)
        view.index_fill_(dim, torch.tensor([7]), 3j)
    ours, plain = pair
    assert torch.equal(ours[:, :9], plain[:, :9])


@pytest.mark.parametrize("name", VIEWS)
def test_copies_of_views(pair, name):
    ours, plain = map(VIEWS[name], pair)
    for copied in (copy.copy(ours), copy.deepcopy(ours), pickle.loads(pickle.dumps(ours))):
        assert torch.equal(copied + 0, plain + 0)


def test_a_view_of_a_file_of_before(pair):
    """It says nothing of conjugates."""
    ours, plain = pair
    rebuild, (memory, geometry, requires_grad) = ours.transpose(1, 2).__reduce_ex__(2)
    made = rebuild(memory, geometry[:4], requires_grad)
    assert torch.equal(made[:, :, :9], plain.transpose(1, 2)[:, :, :9])
    rebuild, (memory, geometry, requires_grad) = ours.__reduce_ex__(2)
    rebuild(memory, geometry[:4], requires_grad).truncate(3)  # the KVTensor itself, not a view
