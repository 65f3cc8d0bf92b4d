"""Operations that use all of a tensor that is larger than its pool's budget."""

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from isolated import every

import vmm

OPERATIONS = [
    "t.sum()", "torch.sum(t, 0)", "t + 1", "1 - t", "t @ t.transpose(-1, -2)", "torch.cat([t, t])",
    "torch.stack([t])", "F.scaled_dot_product_attention(t, t, t)", "torch.where(t > 0, t, t)", "t.numpy()",
    "np.asarray(t)", "t.tolist()", "t.clone()", "t.transpose(0, 1).contiguous()", "t[0].sum()",
    "t[:, 5:].max()", "t.view(-1).fill_(1)", "t.fill_(1)",
    "t.add_(1)", "t.__iadd__(1)", "t.copy_(torch.ones(1))",
    "torch.add(torch.ones(4, 1, 64), 1, out=t)", "torch.relu_(t)", "t.__setitem__(slice(None), 1)",
    "t.__setitem__((0, slice(5, None)), torch.tensor(2.0))", "t[:, :60_000]", "t.narrow(1, 0, 60_000)",
    "t[torch.arange(4), :]", "t[torch.ones(4, dtype=torch.bool)]", "t.index_select(0, torch.arange(4))",
    "t.index_fill_(2, torch.tensor([1]), 1)", "t.masked_fill_(t > 0, 1)", "t.to(torch.float64)[0].sum()",
    "torch.equal(t, t)", "t.append(torch.ones(4, 30_000, 64))", "t.reserve(30_000)", "t.unbind(0)[3].mean()",
    "t.reshape(4, 64, -1).transpose(1, 2).reshape(-1)", "t.sort()", "F.linear(t, torch.ones(1, 64))",
]  # fmt: skip


def _check(operation: str) -> None:
    with vmm.Pool("2MiB", lookahead_pages=0) as pool:
        t: Any = vmm.KVTensor(4, 100_000, 64, dtype=torch.float32, page_bytes=4096, pool=pool)
        t[:2, :3] = 7
        mapped = t.mapped_bytes
        try:
            eval(operation, {"t": t, "torch": torch, "np": np, "F": F})
        except vmm.OutOfPages as caught:
            error = caught
        else:
            raise AssertionError("it did not raise")
        assert isinstance(error, MemoryError)
        assert 0 <= error.free + error.reclaimable < error.asked
        assert error.budget == 2**21
        assert (t.mapped_bytes, t.length) == (mapped, 3)
        assert t[:2, :3].eq(7).all()
        assert t[:2, 3:8].eq(0).all()
        assert t[2:, :8].eq(0).all()


def check() -> None:
    every(_check, {operation: operation for operation in OPERATIONS})
