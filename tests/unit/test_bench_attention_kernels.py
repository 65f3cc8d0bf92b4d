"""The attention benchmark's kernels and what they are checked against, on the CPU and tiny."""

import importlib.util
import json
import os

import numpy as np
import pytest
import torch
from attention_setting import SMALL, states

from child import run_child
from vmm.benchmarks import attention_memory
from vmm.benchmarks.attention_kernels import (
    reference,
    relative_error,
    sdpa,
    seqused,
    seqused_lengths,
)
from vmm.benchmarks.attention_paged import gathered

pytestmark = pytest.mark.usefixtures("one_thread")


def test_blocks_are_where_the_table_says():
    source = attention_memory.stock(SMALL, 2, 128, "cpu")
    held, table = attention_memory.paged(source)
    assert sorted(table.tolist()) == list(range(8))
    for (blocks, _), (keys, _) in zip(held.layers, source.layers, strict=True):
        assert torch.equal(blocks[table.long()].flatten(0, 1), keys)
    q = states(2, 1, 4, 16).bfloat16()
    k, v = held.layers[1]
    stock = [each.view(2, 64, 2, 16) for each in source.layers[1]]
    assert relative_error(gathered(q, k, v, table.view(2, 4), 64), reference(q, *stock)) < 0.01


@pytest.mark.parametrize("queries", [1, 48])
def test_the_reference_is_attention(queries):
    q, k, v = states(2, queries, 8, 16), states(2, 48, 2, 16, seed=1), states(2, 48, 2, 16, seed=2)
    assert relative_error(sdpa(None)(q, k, v), reference(q, k, v)) < 1e-5
    assert relative_error(2 * reference(q, k, v), reference(q, k, v)) == pytest.approx(1, rel=1e-5)


@pytest.mark.parametrize("queries", [1, 48])
def test_the_recipe_over_slots(flash, queries):
    """On records of three layers, whose K and V are strided."""
    records = states(3, 48, 3, 2, 2, 16)
    k, v = records[:, :, 1, 0], records[:, :, 1, 1]
    q = states(3, queries, 4, 16, seed=1)
    assert relative_error(seqused(q, k, v), reference(q, k, v)) < 1e-5
    used = torch.tensor([48, 5, 1], dtype=torch.int32)
    if queries == 1:
        out = seqused_lengths(q, k, v, used)
        for at, length in enumerate(used.tolist()):
            row = slice(at, at + 1)
            assert relative_error(out[row], reference(q[row], k[row, :length], v[row, :length])) < 1e-5


def test_the_recipes_arguments_are_torchs():
    """The real function, on tensors without data: it has these arguments and gives this shape."""
    q, k = torch.empty(3, 1, 4, 16, device="meta"), torch.empty(3, 48, 2, 16, device="meta")
    assert seqused(q, k, k).shape == q.shape


def test_the_triton_kernel_in_its_interpreter():
    if importlib.util.find_spec("triton") is None:
        pytest.skip("no triton")
    if np.lib.NumpyVersion(np.__version__) >= "2.4.0":
        pytest.skip("triton's interpreter makes numbers of arrays, which numpy refuses since 2.4")
    child = run_child(TRITON, environment={**os.environ, "TRITON_INTERPRET": "1"})  # read when it is imported
    assert child.returncode == 0, child.stderr
    errors = json.loads(child.stdout.splitlines()[-1])
    assert len(errors) == 6
    assert max(errors) < 1e-5


TRITON = """
    import json, torch
    from vmm.benchmarks.attention_kernels import reference, relative_error
    from vmm.benchmarks.attention_triton import decode

    torch.manual_seed(0)
    errors = []
    for batch, heads, group, context in ((2, 2, 4, 208), (1, 1, 8, 64), (1, 2, 16, 1008)):
        records = torch.randn(batch, context, 3, 2, heads, 16)
        k, v = records[:, :, 1, 0], records[:, :, 1, 1]
        q = torch.randn(batch, 1, heads * group, 16)
        blocks = [torch.empty(batch * context // 16, 16, heads, 16) for _ in "KV"]
        table = torch.randperm(len(blocks[0]), dtype=torch.int32)
        for scattered, whole in zip(blocks, (k, v), strict=True):
            scattered[table.long()] = whole.reshape(scattered.shape)
        for out in (decode(q, k, v), decode(q, *blocks, table.view(batch, -1), context)):
            errors.append(relative_error(out, reference(q, k, v)))
    print(json.dumps(errors))
"""
