"""What growing in place saves: VmmCache against Transformers' DynamicCache and StaticCache.

Shape: 16 layers x 8 KV heads x 128, bf16, batch 1 (2 x 2 KiB x 16 = 64 KiB a token). The peers re-use their
heap (ENVIRONMENT), so what is compared is copying, not page faults. Arms are interleaved; medians of >= 50.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from time import monotonic

import torch
from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM, StaticCache

from vmm.benchmarks.report import Report, device_name, environment, interleaved, milliseconds, rounded
from vmm.integrations.transformers import VmmCache
from vmm.pool import Pool
from vmm.testing import kernel_account, settle

#: Set before the process starts: malloc keeps what it frees, for the peers' sake.
ENVIRONMENT = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(2**40)}
DEVICES = ("cpu", "cuda")

LAYERS, HEADS, DIM = 16, 8, 128
TOKEN_BYTES = LAYERS * 2 * HEADS * DIM * 2
STEPS = 60
PREFILL_ROUNDS = 7
K = 1024


def run(progress: Callable[[str], None], device: str, seconds: float = math.inf) -> Report:
    """What begins after ``seconds`` is left out, and named in the environment as ``skipped``."""
    bench = _Growth(device)
    end, skipped = monotonic() + seconds, []
    with torch.inference_mode():
        for name, work in (
            ("update, 4k tokens", lambda: bench.updates(4 * K)),
            ("update, 16k tokens", lambda: bench.updates(16 * K)),
            ("prefill", lambda: bench.prefill(16 * K)),
            ("memory", lambda: bench.memory(16 * K)),
            ("mappings", lambda: bench.mappings(64 * K)),
            ("whole decode step", lambda: bench.decode(16 * K)),
            ("tokens", bench.tokens),
        ):
            if monotonic() > end:
                skipped.append(name)
                continue
            progress(name)
            work()
    report = bench.report
    if skipped:
        report.environment["skipped"] = ", ".join(skipped)
    report.metrics = rounded(report.metrics.items())
    report.peers = {**rounded(report.peers.items()), "peer": "transformers DynamicCache, StaticCache"}
    return report


def _config(max_tokens: int, layers: int = LAYERS, **others: int) -> LlamaConfig:
    return LlamaConfig(
        num_hidden_layers=layers,
        num_attention_heads=HEADS,
        num_key_value_heads=HEADS,
        hidden_size=HEADS * DIM,
        head_dim=DIM,
        max_position_embeddings=max_tokens,
        **others,
    )


def _update_all(cache: DynamicCache | StaticCache, states: torch.Tensor) -> None:
    for layer in cache.layers:
        layer.update(states, states)


class _Growth:
    """The measurements, on one device; a GPU's work is waited for within each."""

    def __init__(self, device: str) -> None:
        self.device = torch.device(device)
        self.report = Report("growth", device_name(device), environment=environment("torch", "transformers"))

    def states(self, tokens: int, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
        """As a model makes them: token-major, seen as [1, heads, tokens, dim]."""
        return torch.randn(1, tokens, HEADS, DIM, dtype=dtype, device=self.device).transpose(1, 2)

    def pool(self, budget: int | str) -> Pool:
        return Pool(budget, device=self.device)

    def timed(self, arms: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
        if self.device.type == "cpu":
            return interleaved(arms, rounds)

        def waited_for(work: Callable[[], object]) -> None:
            work()
            torch.cuda.synchronize(self.device)

        torch.cuda.synchronize(self.device)
        return interleaved({name: lambda w=work: waited_for(w) for name, work in arms.items()}, rounds)

    def updates(self, tokens: int) -> None:
        """Sum over layers of layer.update's wall time, one decode step."""
        prompt, token = self.states(tokens), self.states(1)
        room = tokens + STEPS + 1
        caches = {
            "dynamic": DynamicCache(config=_config(room)),
            "static": StaticCache(config=_config(room), max_cache_len=room),
            "vmm": VmmCache(_config(room), pool=self.pool("4GiB")),
        }
        for cache in caches.values():
            _update_all(cache, prompt)
        seconds = self.timed({name: lambda c=c: _update_all(c, token) for name, c in caches.items()}, STEPS)
        label = f"{tokens // K}k"
        self.report.metrics[f"update_speedup_vs_dynamic_{label}"] = seconds["dynamic"] / seconds["vmm"]
        self.report.metrics[f"update_ratio_static_over_vmm_{label}"] = seconds["static"] / seconds["vmm"]
        self.report.peers |= milliseconds(seconds, f"update_{label}")

    def prefill(self, tokens: int) -> None:
        """Cache-update time of one prefill, on memory of three histories."""
        prompt = self.states(tokens)
        size = tokens * TOKEN_BYTES
        warm = self.pool(size + size // 16)
        # There is no room for a second cache: a cache of another shape must remap.
        tight = self.pool(size + size // 16)
        fresh = self.pool(size + size // 16)
        shapes = iter(range(tokens, 2 * tokens, K))

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
        seconds = self.timed(arms, PREFILL_ROUNDS)
        times = []
        for _ in range(3):
            fresh.trim()
            times.append(self.timed({"fresh": on_fresh}, 1)["fresh"])
        seconds["fresh"] = sorted(times)[1]
        for name in ("recycled", "remapped", "fresh"):
            suffix = "" if name == "recycled" else f"_{name}"
            self.report.metrics[f"prefill_slowdown_vs_dynamic_16k{suffix}"] = (
                seconds[name] / seconds["dynamic"]
            )
        self.report.peers |= milliseconds(seconds, "prefill_16k")

    def memory(self, tokens: int) -> None:
        """Physical bytes while a cache grows; the kernel's account of the host's must be the pool's."""
        pool = self.pool("4GiB")
        cache = VmmCache(_config(2 * tokens), pool=pool)
        chunk = self.states(64)
        on_host = self.device.type == "cpu"
        peak = 0
        while cache.get_seq_length() < tokens:
            _update_all(cache, chunk)
            if on_host:
                peak = max(peak, os.fstat(pool._core.memfd).st_blocks * 512)
        settle(pool)
        stats = pool.stats()
        if on_host:
            kernel = kernel_account(pool)
            if (kernel.committed_bytes, kernel.resident_bytes) != (stats.created_bytes, stats.mapped_bytes):
                raise AssertionError(f"kernel: {kernel}; pool: {stats}")
        live = cache.stats().live_bytes
        self.report.metrics["peak_bytes_over_live_16k"] = max(peak, stats.peak_created_bytes) / live

    def mappings(self, tokens: int) -> None:
        """Lines of /proc/self/maps naming the memfd at full length: fresh, adopted whole, and remapped. There
        are none of a GPU's memory."""
        if self.device.type != "cpu":
            return
        size = tokens * TOKEN_BYTES
        pool = self.pool(size + size // 16)
        prompt = self.states(4 * K)
        counts = []
        for max_tokens in (tokens, tokens, tokens + K):
            cache = VmmCache(_config(max_tokens), pool=pool)
            while cache.get_seq_length() < tokens:
                _update_all(cache, prompt)
            counts.append(kernel_account(pool).mappings)
            del cache
        self.report.metrics["mappings_at_64k_tokens"] = max(counts)
        for name, count in zip(("fresh", "recycled", "remapped"), counts, strict=True):
            self.report.metrics[f"mappings_at_64k_tokens_{name}"] = count

    def decode(self, tokens: int) -> None:
        """A whole forward of one token: 8-layer fp32 Llama, hidden 1024, 8 heads of 128, MLP 2816."""
        room = tokens + STEPS + 1
        config = _config(room, layers=8, intermediate_size=2816, vocab_size=1024)
        torch.manual_seed(0)
        model = LlamaForCausalLM(config).eval().to(self.device)
        prompt = self.states(tokens, torch.float32)
        token = torch.tensor([[1]], device=self.device)
        caches = {"dynamic": DynamicCache(config=config), "vmm": VmmCache(config, pool=self.pool("2GiB"))}
        for cache in caches.values():
            _update_all(cache, prompt)
        arms = {name: lambda c=c: model(token, past_key_values=c) for name, c in caches.items()}
        seconds = self.timed(arms, STEPS)
        self.report.metrics["decode_step_speedup_vs_dynamic_16k"] = seconds["dynamic"] / seconds["vmm"]
        self.report.peers |= milliseconds(seconds, "decode_step_16k")

    def tokens(self) -> None:
        """Greedy generation, batch 1 and left-padded batch 3: tokens and scores bitwise as DynamicCache."""
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
        model = LlamaForCausalLM(config).eval().to(self.device)
        identical = True
        for rows in (1, 3):
            ids = torch.randint(2, 512, (rows, 300)).to(self.device)
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
            ours = model.generate(ids, past_key_values=VmmCache(config, pool=self.pool("256MiB")), **options)
            identical &= torch.equal(theirs.sequences, ours.sequences)
            identical &= all(torch.equal(a, b) for a, b in zip(theirs.scores, ours.scores, strict=True))
        self.report.metrics["tokens_identical"] = int(identical)
