"""A setting in which the attention benchmark is tiny, and runs on the CPU."""

import torch

from vmm.benchmarks.attention_comparison import Setting
from vmm.benchmarks.attention_kernels import sdpa
from vmm.benchmarks.attention_paged import paged_kernel
from vmm.benchmarks.attention_results import Results
from vmm.benchmarks.attention_shapes import Model, Scale
from vmm.benchmarks.report import interleaved

KIB = 1024
SMALL = Model("small", layers=6, q_heads=4, kv_heads=2, dim=16)
TINY = Scale(
    models=(SMALL,),
    decode_batches=(1, 3),
    decode_contexts=(32, 64),
    prefill_contexts=(32,),
    page_bytes=(64 * KIB, 256 * KIB),
    measured_layers=4,
    flush_bytes=0,
    rounds=3,
    shape_s=0.5,  # generous: on a busy machine nothing is to be skipped
    longest_s=60,
    total_s=60,
    checked_scores=2**20,
    spare_bytes=0,
)


def setting(scale=TINY, **kernels):
    results = Results(scale.page_bytes[0])
    paged, _ = paged_kernel("cpu")
    return Setting(scale, "cpu", interleaved, kernels or {"sdpa": sdpa(None)}, paged, results)


def states(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float32)
