"""Attention as in Meta's reference Llama, over torch.empty and over KVTensor: one line differs."""

import copy
import io

import pytest
import torch
from torch import nn

from vmm import KVTensor

BATCH, TOKENS, HEADS, KV_HEADS, DIM = 3, 200, 4, 2, 12
WIDTH = HEADS * DIM


def repeat_kv(x, times):
    batch, tokens, heads, dim = x.shape
    return x[:, :, :, None, :].expand(batch, tokens, heads, times, dim).reshape(batch, tokens, -1, dim)


class Attention(nn.Module):
    def __init__(self, empty, buffers=False):
        super().__init__()
        self.wq = nn.Linear(WIDTH, WIDTH, bias=False)
        self.wk, self.wv = (nn.Linear(WIDTH, KV_HEADS * DIM, bias=False) for _ in range(2))
        self.wo = nn.Linear(WIDTH, WIDTH, bias=False)
        caches = {name: empty((BATCH, TOKENS, KV_HEADS, DIM)) for name in ("cache_k", "cache_v")}
        for name, cache in caches.items():
            if buffers:
                self.register_buffer(name, cache)
            else:
                setattr(self, name, cache)

    def forward(self, x, start_pos):
        batch, tokens, _ = x.shape
        xq = self.wq(x).view(batch, tokens, HEADS, DIM)
        xk = self.wk(x).view(batch, tokens, KV_HEADS, DIM)
        xv = self.wv(x).view(batch, tokens, KV_HEADS, DIM)

        self.cache_k = self.cache_k.to(xq)
        self.cache_v = self.cache_v.to(xq)

        self.cache_k[:batch, start_pos : start_pos + tokens] = xk
        self.cache_v[:batch, start_pos : start_pos + tokens] = xv

        keys = self.cache_k[:batch, : start_pos + tokens]
        values = self.cache_v[:batch, : start_pos + tokens]

        keys, values = repeat_kv(keys, HEADS // KV_HEADS), repeat_kv(values, HEADS // KV_HEADS)
        xq, keys, values = (x.transpose(1, 2) for x in (xq, keys, values))
        scores = torch.matmul(xq, keys.transpose(2, 3)) / DIM**0.5
        if tokens > 1:
            mask = torch.full((tokens, tokens), float("-inf"), dtype=x.dtype).triu(1)
            scores += torch.hstack([torch.zeros(tokens, start_pos, dtype=x.dtype), mask])
        scores = torch.softmax(scores.float(), dim=-1).type_as(xq)
        return self.wo(torch.matmul(scores, values).transpose(1, 2).reshape(batch, tokens, -1))


def pair(make, **options):
    models = []
    for empty in (torch.empty, make):
        torch.manual_seed(0)
        models.append(Attention(empty, **options))
    return models


def drive(model, dtype=torch.float32, start=0, steps=12):
    """Two prompts, single tokens, and some of a smaller batch."""
    torch.manual_seed(1)
    out = [model(torch.randn(BATCH, 40, WIDTH, dtype=dtype), start)]
    out.append(model(torch.randn(BATCH, 7, WIDTH, dtype=dtype), start + 40))
    out += [model(torch.randn(BATCH, 1, WIDTH, dtype=dtype), start + 47 + step) for step in range(steps)]
    out.append(model(torch.randn(BATCH - 1, 3, WIDTH, dtype=dtype), start + 47 + steps - 3))
    return [x.detach() for x in out]


def assert_same(ours, theirs):
    assert len(ours) == len(theirs)
    for a, b in zip(ours, theirs, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_one_line_edited(make, mode, dtype):
    stock, ours = pair(make)
    with mode():
        assert_same(drive(ours.to(dtype), dtype), drive(stock.to(dtype), dtype))
    assert type(ours.cache_k) is KVTensor
    assert ours.cache_k.length == 59
    assert ours.cache_k.mapped_bytes < ours.cache_k.nbytes


@pytest.mark.parametrize("outer", [torch.no_grad, torch.inference_mode])
def test_tensors_made_inside_a_mode(make, outer):
    with outer():
        stock, ours = pair(make)
        assert_same(drive(ours), drive(stock))
    with torch.inference_mode():
        assert_same(drive(ours, start=59), drive(stock, start=59))
    if outer is torch.inference_mode:
        drive(ours)  # torch.empty would refuse: an inference tensor is one for ever


def test_with_gradients_recorded(make):
    """As in the reference when somebody forgets no_grad(): writes of recorded values, and their gradients."""
    grads = []
    for model in pair(make):
        torch.manual_seed(1)
        x = torch.randn(BATCH, 20, WIDTH, requires_grad=True)
        model(x, 0).square().sum().backward()
        grads.append([x.grad, *(p.grad for p in model.parameters())])
    assert_same(*grads)


def test_a_first_step_without_gradients_and_the_next_with(make):
    outputs = []
    for model in pair(make):
        with torch.no_grad():
            first = drive(model)
        x = torch.ones(BATCH, 5, WIDTH, requires_grad=True)
        y = model(x, 59)
        y.sum().backward()
        outputs.append([*first, y.detach(), x.grad])
    assert_same(*outputs)


@torch.no_grad()
@pytest.mark.parametrize("convert", [nn.Module.half, nn.Module.double, nn.Module.bfloat16, nn.Module.float])
def test_buffers_are_converted_with_their_tokens(make, convert):
    stock, ours = (convert(model) for model in pair(make, buffers=True))
    dtype = stock.cache_k.dtype
    assert ours.cache_k.dtype == dtype
    assert_same(drive(ours, dtype), drive(stock, dtype))
    assert_same(drive(ours.float(), start=59), drive(stock.float(), start=59))


@torch.no_grad()
def test_state_dict_and_back(make):
    stock, ours = pair(make, buffers=True)
    assert_same(drive(ours), drive(stock))
    state = ours.state_dict()
    assert list(state) == list(stock.state_dict())
    file = io.BytesIO()
    torch.save(state, file)
    assert len(file.getvalue()) < 120_000  # of the weights; the live tokens are 34 kB, the caches 115 kB
    _, fresh = pair(make, buffers=True)
    fresh.load_state_dict(torch.load(io.BytesIO(file.getvalue()), weights_only=True))
    assert type(fresh.cache_k) is KVTensor
    assert_same(drive(fresh, start=59), drive(stock, start=59))
    _, fresh = pair(make, buffers=True)
    stock.load_state_dict(state)  # reads all of it, into a plain tensor
    fresh.load_state_dict(stock.state_dict())  # and from one
    assert_same(drive(fresh, start=59), drive(ours, start=59))


@torch.no_grad()
def test_deepcopy_of_the_module(make):
    stock, ours = pair(make, buffers=True)
    drive(ours), drive(stock)
    twin, other = copy.deepcopy(ours), copy.deepcopy(stock)
    drive(ours), drive(stock)  # overwrites
    assert_same(drive(twin, start=59), drive(other, start=59))
    assert_same(drive(ours, start=59), drive(stock, start=59))
    assert twin.cache_k.data_ptr() != ours.cache_k.data_ptr()
