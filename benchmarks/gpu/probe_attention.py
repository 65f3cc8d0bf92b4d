"""Probe 7, its second part: the seqused_k recipe over slots of our memory, and decoding by layout.

The second is one shape of ``vmm bench attention``, for when there is no time for all of it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from conformance_bench import Bench

from benchmarks.gpu.probe_memory import tensor_device
from benchmarks.gpu.probe_what import WrongData

_LENGTHS = (1, 17, 400, 999, 1000)  # of 1000 tokens each slot has room for
_MOST = 2e-2  # relative error against float32


def seqused_recipe(b: Bench, device: str | None = None, heads: int = 8) -> Iterator[tuple[str, Any]]:
    """Slots of differing lengths, without a copy, in records of four layers; what lies beyond a slot's length
    is first random, then zero, then NaN, which a kernel may let through."""
    import torch

    import vmm
    from vmm.benchmarks.attention_kernels import reference, relative_error, seqused_lengths

    device = device or tensor_device()
    room, dim, layers = max(_LENGTHS), 128, 4
    torch.manual_seed(0)
    with vmm.Pool("256MiB", device=device) as pool:
        shape = (len(_LENGTHS) * room, layers, 2, heads, dim)
        records = vmm.KVTensor(*shape, dtype=torch.bfloat16, grow_dim=0, pool=pool)[: shape[0]]
        records.normal_()
        slots = records.unflatten(0, (len(_LENGTHS), room))
        k, v = slots[:, :, 2, 0], slots[:, :, 2, 1]
        q = torch.randn(len(_LENGTHS), 1, 4 * heads, dim, dtype=torch.bfloat16, device=device)
        used = torch.tensor(_LENGTHS, dtype=torch.int32, device=device)
        expected = torch.cat(
            [reference(q[i : i + 1], k[i : i + 1, :n], v[i : i + 1, :n]) for i, n in enumerate(_LENGTHS)]
        )
        yield "strides_of_k", list(k.stride())
        for name, beyond in (("random", None), ("zero", 0.0), ("NaN", float("nan"))):
            for slot, length in enumerate(_LENGTHS):
                if beyond is not None:
                    slots[slot, length:] = beyond
            error = relative_error(seqused_lengths(q, k, v, used), expected)
            yield f"relative_error_with_{name}_beyond_the_length", error
            if not error <= _MOST and name != "NaN":
                raise WrongData(f"with {name} beyond the length: {error}")
        b.cuda.do("cuCtxSynchronize")


def decode_by_layout(b: Bench, device: str | None = None, scale: Any = None) -> Iterator[tuple[str, Any]]:
    from vmm.benchmarks.attention import cuda_kernels, measured
    from vmm.benchmarks.attention_kernels import sdpa
    from vmm.benchmarks.attention_results import FLASH
    from vmm.benchmarks.attention_shapes import FULL, LLAMA_8B

    device = device or tensor_device()
    if scale is None:
        one = {"decode_batches": (16,), "decode_contexts": (4096,), "prefill_contexts": ()}
        scale = replace(FULL, models=(LLAMA_8B,), page_bytes=FULL.page_bytes[:1], **one)
    kernels = {FLASH: sdpa(None)} if device == "cpu" else cuda_kernels()  # without cuDNN
    results = measured(scale, device, kernels, lambda stage: print(stage, flush=True))
    for name, value in results.metrics().items():
        if "_b" not in name:  # the means, which are the one shape here
            yield name, round(value, 4)
    for name, value in results.peers().items():
        yield name, value
