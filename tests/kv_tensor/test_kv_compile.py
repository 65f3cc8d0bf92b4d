"""torch.compile: each use of a KVTensor is a graph break that says why; results are those of eager."""

import logging
import sys

import pytest
import torch
from torch import nn
from torch.nn.functional import scaled_dot_product_attention

from child import run_child
from vmm import KVTensor


@pytest.fixture(autouse=True)
def fresh():
    import torch._dynamo

    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


BACKENDS = pytest.mark.parametrize("backend", ["eager", "aot_eager"])


def filled(make):
    t = make(2, 1000, 3, 4)
    t.append(torch.arange(2.0 * 6 * 12).view(2, 6, 3, 4))
    return t


def append_and_attend(t, x):
    t.append(x)
    keys = t[:, : t.length].transpose(1, 2)
    return scaled_dot_product_attention(x.transpose(1, 2) * 2, keys, keys) + (t.mapped_bytes > 0)


FUNCTIONS = {
    "write and read": lambda t, x: (t.__setitem__((slice(2), slice(6, 8)), x * 2), t[:, :8].sum(0) * 2)[1],
    "append": append_and_attend,
    "geometry": lambda t, x: x + t.shape[1] + t.size(0) + len(t) + t.stride(0),
    "consume": lambda t, x: x[:, :1] * 2 + t,
    "consumed from the right": lambda t, x: (1 - t)[:, :4] + x.sum(),
    "into a list": lambda t, x: torch.cat([x * 2, t[:, :2], t], 1) + 1,
    "out": lambda t, x: torch.add(x, 1, out=t[:, :2]) * 2,
    "in place": lambda t, x: (t.mul_(3), t[:, :2].mul_(3), t[:, :3] + 0)[2],
    "views": lambda t, x: t.transpose(1, 2)[:, :, 1:3].contiguous() + t.view(2, 1000, 12)[:, :2].sum(),
    "advanced": lambda t, x: t[torch.arange(2), torch.tensor([1, 2])] + x[:, 0],
    "conversion": lambda t, x: t.to(torch.float64)[:, :4] * 2 + t.to(x)[:, :4],
    "truncate": lambda t, x: (t.truncate(3), t.append(x * 2), t[:, :5] * t.length)[2],
    "zero": lambda t, x: (t.zero_(), t[:, :7] + x.sum())[1],
    "branch": lambda t, x: x + 1 if isinstance(t, KVTensor) and t is not None else x - 1,
    "returned": lambda t, x: (t, x + 1, t[:, :3]),
    "a new one": lambda t, x: KVTensor(2, 10, 3, page_bytes=4096, pool=t._memory.pool)[:, :2] + x.sum(),
}


@BACKENDS
@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_compiled_function_does_what_it_says(make, name, backend):
    results = []
    for function in (FUNCTIONS[name], torch.compile(FUNCTIONS[name], backend=backend)):
        t, x = filled(make), torch.linspace(0, 1, 48).view(2, 2, 3, 4)
        leaves = []
        for _ in range(2):
            out = function(t, x)
            for leaf in out if isinstance(out, tuple) else (out,):
                leaves.append((type(leaf), leaf[:, :20].clone()))
        results.append([*leaves, (t.length, t[:, :20].clone())])
    for (kind, ours), (expected_kind, expected) in zip(*results, strict=True):
        assert kind == expected_kind
        assert torch.equal(ours, expected)


@BACKENDS
def test_closures_and_modules(make, backend):
    t = filled(make)

    @torch.compile(backend=backend)
    def closed_over(x):
        t[:, 6:8] = x
        return t[:, :8] + x.sum()

    class Layer(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("cache", filled(make))
            self.linear = nn.Linear(4, 4)

        def forward(self, x, at):
            x = self.linear(x)
            self.cache[:, at : at + 2] = x
            return self.linear(self.cache[:, : at + 2])

    for value in (1.0, 2.0, 3.0):
        x = torch.full((2, 2, 3, 4), value)
        assert torch.equal(closed_over(x)[:, 6:], x + x.sum())
        assert t[:, 6:8].eq(value).all()
    with torch.no_grad():
        layer = Layer()
        expected = [layer(x, at) for at in (0, 2, 4)]
        layer.cache.copy_(filled(make))
        compiled = torch.compile(layer, backend=backend)
        for at, wanted in zip((0, 2, 4), expected, strict=True):
            assert torch.equal(compiled(x, at), wanted)


def test_where_no_break_is_allowed_it_is_refused_by_name(make):
    for name in set(FUNCTIONS) - {"branch", "returned"}:
        with pytest.raises(
            RuntimeError,
            match=r"vmm\.KVTensor maps memory where it is touched|method `\w+` of class `KVTensor`",
        ):
            torch.compile(FUNCTIONS[name], backend="eager", fullgraph=True)(
                filled(make), torch.ones(2, 2, 3, 4)
            )


def test_the_log_names_the_reason_once(make, caplog):
    torch._logging.set_logs(graph_breaks=True)
    try:
        with caplog.at_level(logging.DEBUG, "torch._dynamo"):
            function = torch.compile(lambda t, x: t[:, :3] * x, backend="eager")
            for _ in range(3):
                function(filled(make), 2.0)
    finally:
        torch._logging.set_logs()
    said = [record.getMessage() for record in caplog.records if record.name.endswith("__graph_breaks")]
    assert sum("vmm.KVTensor maps memory where it is touched" in text for text in said) == 1


@BACKENDS
def test_iterating_gives_the_rows(make, backend):
    t = filled(make)
    function = torch.compile(lambda t: torch.stack([row[:6] * 2 for row in t]), backend=backend)
    assert torch.equal(function(t), t[:, :6] * 2)


def test_vmm_does_not_import_the_compiler():
    result = run_child(
        "import sys, vmm; vmm.KVTensor(1, 10)[:, :2] = 1; print('torch._dynamo' in sys.modules)"
    )
    assert result.stdout == "False\n", result.stderr
    assert "torch._dynamo" in sys.modules
