"""What growing in place saves: VmmCache against Transformers' DynamicCache and StaticCache, on the CPU.

Shape: 16 layers x 8 KV heads x 128, bf16, batch 1 (2 x 2 KiB x 16 = 64 KiB a token). The peers re-use their
heap (ENVIRONMENT), so what is compared is copying, not page faults. Arms are interleaved; medians of >= 50.
"""

from __future__ import annotations

import os
from collections.abc import Callable

import torch
from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM, StaticCache

from vmm.benchmarks.report import Report, environment, interleaved, milliseconds, rounded
from vmm.integrations.transformers import VmmCache
from vmm.pool import Pool
from vmm.testing import kernel_account, settle

#: Set before the process starts: malloc keeps what it frees, for the peers' sake.
ENVIRONMENT = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(2**40)}
DEVICES = ("cpu",)

LAYERS, HEADS, DIM = 16, 8, 128
TOKEN_BYTES = LAYERS * 2 * HEADS * DIM * 2
STEPS = 60
PREFILL_ROUNDS = 7
K = 1024


def run(progress: Callable[[str], None], device: str) -> Report:
    report = Report("growth", "cpu", environment=environment("torch", "transformers"))
    with torch.inference_mode():
        for name, work in (
            ("update, 4k tokens", lambda: _updates(report, 4 * K)),
            ("update, 16k tokens", lambda: _updates(report, 16 * K)),
            ("prefill", lambda: _prefill(report, 16 * K)),
            ("memory", lambda: _memory(report, 16 * K)),
            ("mappings", lambda: _mappings(report, 64 * K)),
            ("whole decode step", lambda: _decode(report, 16 * K)),
            ("tokens", lambda: _tokens(report)),
        ):
            progress(name)
            work()
    report.metrics = rounded(report.metrics.items())
    report.peers = {**rounded(report.peers.items()), "peer": "transformers DynamicCache, StaticCache"}
    return report


def _config(max_tokens: int) -> LlamaConfig:
    return LlamaConfig(
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        num_key_value_heads=HEADS,
        hidden_size=HEADS * DIM,
        head_dim=DIM,
        max_position_embeddings=max_tokens,
    )


def _states(tokens: int) -> torch.Tensor:
    """As a model makes them: token-major, seen as [1, heads, tokens, dim]."""
    return torch.randn(1, tokens, HEADS, DIM, dtype=torch.bfloat16).transpose(1, 2)


def _update_all(cache: DynamicCache | StaticCache, states: torch.Tensor) -> None:
    for layer in cache.layers:
        layer.update(states, states)


def _updates(report: Report, tokens: int) -> None:
    """Sum over layers of layer.update's wall time, one decode step."""
    prompt, token = _states(tokens), _states(1)
    room = tokens + STEPS + 1
    caches = {
        "dynamic": DynamicCache(config=_config(room)),
        "static": StaticCache(config=_config(room), max_cache_len=room),
        "vmm": VmmCache(_config(room), pool=Pool("4GiB")),
    }
    for cache in caches.values():
        _update_all(cache, prompt)
    seconds = interleaved({name: lambda c=c: _update_all(c, token) for name, c in caches.items()}, STEPS)
    label = f"{tokens // K}k"
    report.metrics[f"update_speedup_vs_dynamic_{label}"] = seconds["dynamic"] / seconds["vmm"]
    report.metrics[f"update_ratio_static_over_vmm_{label}"] = seconds["static"] / seconds["vmm"]
    report.peers |= milliseconds(seconds, f"update_{label}")


def _prefill(report: Report, tokens: int) -> None:
    """Cache-update time of one prefill, on memory of three histories."""
    prompt = _states(tokens)
    size = tokens * TOKEN_BYTES
    warm = Pool(size + size // 16)
    tight = Pool(size + size // 16)  # no room for a second cache: a cache of another shape must remap
    fresh = Pool(size + size // 16)
    shapes = iter(range(tokens, 2 * tokens, 256))

    def vmm(pool: Pool, max_tokens: int) -> None:
        _update_all(VmmCache(_config(max_tokens), pool=pool), prompt)

    def on_fresh() -> None:
        vmm(fresh, tokens)

    arms = {
        "dynamic": lambda: _update_all(DynamicCache(config=_config(tokens)), prompt),
        "recycled": lambda: vmm(warm, tokens),
        "remapped": lambda: vmm(tight, next(shapes)),
    }
    for work in arms.values():
        work()
    seconds = interleaved(arms, PREFILL_ROUNDS)
    times = []
    for _ in range(3):
        fresh.trim()
        times.append(interleaved({"fresh": on_fresh}, 1)["fresh"])
    seconds["fresh"] = sorted(times)[1]
    for name in ("recycled", "remapped", "fresh"):
        suffix = "" if name == "recycled" else f"_{name}"
        report.metrics[f"prefill_slowdown_vs_dynamic_16k{suffix}"] = seconds[name] / seconds["dynamic"]
    report.peers |= milliseconds(seconds, "prefill_16k")


def _memory(report: Report, tokens: int) -> None:
    """The kernel's account of resident bytes while a cache grows; it must be the pool's own."""
    pool = Pool("4GiB")
    cache = VmmCache(_config(2 * tokens), pool=pool)
    chunk = _states(64)
    peak = 0
    while cache.get_seq_length() < tokens:
        _update_all(cache, chunk)
        peak = max(peak, os.fstat(pool._core.memfd).st_blocks * 512)
    settle(pool)
    kernel, stats = kernel_account(pool), pool.stats()
    if (kernel.committed_bytes, kernel.resident_bytes) != (stats.created_bytes, stats.mapped_bytes):
        raise AssertionError(f"kernel: {kernel}; pool: {stats}")
    report.metrics["peak_bytes_over_live_16k"] = max(peak, kernel.committed_bytes) / cache.stats().live_bytes


def _mappings(report: Report, tokens: int) -> None:
    """Lines of /proc/self/maps naming the memfd at full length: fresh, adopted whole, and remapped."""
    size = tokens * TOKEN_BYTES
    pool = Pool(size + size // 16)
    prompt = _states(4 * K)
    counts = []
    for max_tokens in (tokens, tokens, tokens + K):
        cache = VmmCache(_config(max_tokens), pool=pool)
        while cache.get_seq_length() < tokens:
            _update_all(cache, prompt)
        counts.append(kernel_account(pool).mappings)
        del cache
    report.metrics["mappings_at_64k_tokens"] = max(counts)
    for name, count in zip(("fresh", "recycled", "remapped"), counts, strict=True):
        report.metrics[f"mappings_at_64k_tokens_{name}"] = count


def _decode(report: Report, tokens: int) -> None:
    """A whole forward of one token: 8-layer fp32 Llama, hidden 1024, 8 heads of 128, MLP 2816."""
    room = tokens + STEPS + 1
    config = LlamaConfig(
        num_hidden_layers=8,
        hidden_size=1024,
        num_attention_heads=8,
        num_key_value_heads=8,
        intermediate_size=2816,
        vocab_size=1024,
        max_position_embeddings=room,
    )
    torch.manual_seed(0)
    model = LlamaForCausalLM(config).eval()
    prompt = torch.randn(1, tokens, 8, 128).transpose(1, 2)
    token = torch.tensor([[1]])
    caches = {"dynamic": DynamicCache(config=config), "vmm": VmmCache(config, pool=Pool("2GiB"))}
    for cache in caches.values():
        _update_all(cache, prompt)
    arms = {name: lambda c=c: model(token, past_key_values=c) for name, c in caches.items()}
    seconds = interleaved(arms, STEPS)
    report.metrics["decode_step_speedup_vs_dynamic_16k"] = seconds["dynamic"] / seconds["vmm"]
    report.peers |= milliseconds(seconds, "decode_step_16k")


def _tokens(report: Report) -> None:
    """Greedy generation, batch 1 and left-padded batch 3: tokens and scores bitwise those of DynamicCache."""
    config = LlamaConfig(
        num_hidden_layers=4,
        hidden_size=256,
        num_attention_heads=8,
        num_key_value_heads=2,
        intermediate_size=512,
        vocab_size=512,
        max_position_embeddings=2048,
    )
    torch.manual_seed(1)
    model = LlamaForCausalLM(config).eval()
    identical = True
    for rows in (1, 3):
        ids = torch.randint(2, 512, (rows, 300))
        mask = torch.ones_like(ids)
        for row in range(rows):
            mask[row, : 37 * row] = 0
        options = {
            "attention_mask": mask,
            "max_new_tokens": 300,
            "do_sample": False,
            "pad_token_id": 0,
            "output_scores": True,
            "return_dict_in_generate": True,
        }
        theirs = model.generate(ids, past_key_values=DynamicCache(config=config), **options)
        ours = model.generate(ids, past_key_values=VmmCache(config, pool=Pool("256MiB")), **options)
        identical &= torch.equal(theirs.sequences, ours.sequences)
        identical &= all(torch.equal(a, b) for a, b in zip(theirs.scores, ours.scores, strict=True))
    report.metrics["tokens_identical"] = int(identical)
