"""What a ``VmmCache`` saves where a ``DynamicCache`` copies: a sliding window and, with ``--beams``, beams.

- Sliding: one layer of 8 KV heads x 128 in bf16 with a window of 4,096 tokens grows to 65,536. The two caches
  take turns of 512 tokens: 64 one by one, and the rest at once. ``sliding_speedup`` (asked: at least 10): the
  time of DynamicCache's updates by one token ÷ that of ours. One in 64 of them comes into a new page, while
  a page has 256 tokens. ``sliding_resident_over_window`` (asked: at most 1.1): the most memory that our pool
  had when 64 tokens had come one by one, once a window was full ÷ the K and V of 4,096 tokens.
  ``sliding_states_identical``: what both show at the end is the same, bit for bit.
- With ``--beams``: ``generate(num_beams=8)`` of a 2-layer fp32 Llama (hidden 256, 4 KV heads x 64) goes on
  from a prompt of 4,032 tokens to 4,096. ``beams_memory_ratio``: the most memory that our pool had at the end
  of any step ÷ the K and V that DynamicCache holds at the end, not counting what it holds beside them while
  it copies. ``beams_memory_over_ideal`` divides by the prompt once and eight times the new tokens instead.
  ``beams_time_ratio``: our time of the whole call ÷ DynamicCache's. ``beams_step_ratio``: the same of the
  median step after the first. ``beams_tokens_identical``: 1 where sequences and scores are the same bits.

Peer: ``transformers.DynamicCache`` on a heap that keeps what is freed (ENVIRONMENT), so that what is compared
is copying and not page faults. Memory is the system's account of the pool's file on the host, and the pool's
own on a GPU.
"""

from __future__ import annotations

import os
import statistics
from collections.abc import Callable
from dataclasses import dataclass
from time import perf_counter
from typing import Any

import torch
from transformers import (
    DynamicCache,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    StoppingCriteria,
    StoppingCriteriaList,
)

from vmm.benchmarks.report import Report, device_name, environment, rounded, time_once
from vmm.integrations.transformers import VmmCache
from vmm.pool import Pool

#: Set before the process starts: malloc keeps what it frees, for the peer's sake.
ENVIRONMENT = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(2**40)}
DEVICES = ("cpu", "cuda")


@dataclass(frozen=True)
class Scale:
    window: int = 4096
    sliding_tokens: int = 65_536
    turn: int = 512
    one_by_one: int = 64  # of a turn
    heads: int = 8
    dim: int = 128
    beams: int = 8
    prompt: int = 4032
    new_tokens: int = 64
    hidden: int = 256  # of the beams' model: heads of 64
    layers: int = 2


FULL = Scale()


def run(progress: Callable[[str], None], device: str, beams: bool = False, scale: Scale = FULL) -> Report:
    report = Report("generate", device_name(device), environment=environment("torch", "transformers"))
    with torch.inference_mode():
        progress(f"a window of {scale.window} over {scale.sliding_tokens} tokens")
        _sliding(report, device, scale)
        if beams:
            progress(f"{scale.beams} beams of {scale.prompt + scale.new_tokens} tokens")
            _beams(report, device, scale)
    report.metrics = rounded(report.metrics.items())
    report.peers = {"peer": "transformers DynamicCache", **rounded(report.peers.items())}
    return report


def _memory(pool: Pool) -> int:
    """Bytes that the pool has from the system now."""
    if pool.device == "cpu" and hasattr(pool._core, "memfd"):
        return os.fstat(pool._core.memfd).st_blocks * 512
    return pool.stats().created_bytes


def _synchronize(device: str) -> None:
    if device != "cpu":
        torch.cuda.synchronize(device)


def _sliding(report: Report, device: str, scale: Scale) -> None:
    config = MistralConfig(
        num_hidden_layers=1,
        num_key_value_heads=scale.heads,
        head_dim=scale.dim,
        sliding_window=scale.window,
        max_position_embeddings=scale.sliding_tokens,
    )
    pool = Pool(device=device)
    caches = {"dynamic": DynamicCache(config=config), "vmm": VmmCache(config, pool=pool)}
    shape = (1, scale.turn, scale.heads, scale.dim)
    states = torch.randn(shape, dtype=torch.bfloat16, device=device).transpose(1, 2)
    tokens, rest = states[:, :, : scale.one_by_one].split(1, dim=2), states[:, :, scale.one_by_one :]
    seconds = dict.fromkeys(caches, 0.0)
    most = 0

    def grow(cache: DynamicCache) -> None:
        for token in tokens:
            cache.update(token, token, 0)
        _synchronize(device)

    for turn in range(scale.sliding_tokens // scale.turn):
        for name, cache in caches.items():
            seconds[name] += time_once(lambda cache=cache: grow(cache))
            if name == "vmm" and turn * scale.turn > scale.window:
                most = max(most, _memory(pool))
            cache.update(rest, rest, 0)
    window_bytes = 2 * scale.window * scale.heads * scale.dim * states.itemsize
    shown = [(cache.layers[0].keys, cache.layers[0].values) for cache in caches.values()]
    report.metrics |= {
        "sliding_speedup": seconds["dynamic"] / seconds["vmm"],
        "sliding_resident_over_window": most / window_bytes,
        "sliding_states_identical": int(all(torch.equal(*both) for both in zip(*shown, strict=True))),
    }
    updates = scale.sliding_tokens // scale.turn * scale.one_by_one
    for name, total in seconds.items():
        report.peers[f"{name}_sliding_update_us"] = 1e6 * total / updates


class _Steps(StoppingCriteria):
    """Never stops; notes when each step is over, and what is to be looked at then."""

    def __init__(self, device: str, look: Callable[[], int]) -> None:
        self._device, self._look = device, look
        self.times: list[float] = []
        self.most = 0

    def __call__(self, input_ids: torch.Tensor, scores: Any, **_: Any) -> torch.Tensor:
        _synchronize(self._device)
        self.times.append(perf_counter())
        self.most = max(self.most, self._look())
        return torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)

    def median_step(self) -> float:
        return statistics.median(
            after - before for before, after in zip(self.times, self.times[1:], strict=False)
        )


def _beams(report: Report, device: str, scale: Scale) -> None:
    config = LlamaConfig(
        num_hidden_layers=scale.layers,
        hidden_size=scale.hidden,
        intermediate_size=2 * scale.hidden,
        num_attention_heads=scale.hidden // 64,
        num_key_value_heads=scale.hidden // 64,
        vocab_size=1024,
        max_position_embeddings=scale.prompt + scale.new_tokens,
        # Large, so that the tokens depend on the past, and the beams keep changing places.
        initializer_range=0.1,
        bos_token_id=None,
        eos_token_id=None,
    )
    torch.manual_seed(0)
    model = LlamaForCausalLM(config).eval().to(device)
    ids = torch.randint(0, 1024, (1, scale.prompt), device=device)
    pool = Pool(device=device)
    caches = {"dynamic": DynamicCache(config=config), "vmm": VmmCache(config, pool=pool)}
    steps = {
        "dynamic": _Steps(device, lambda: 0),
        "vmm": _Steps(device, lambda: _memory(pool)),
    }
    seconds, outputs = {}, {}
    for name, cache in caches.items():
        start = perf_counter()
        outputs[name] = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            past_key_values=cache,
            num_beams=scale.beams,
            do_sample=False,
            min_new_tokens=scale.new_tokens,
            max_new_tokens=scale.new_tokens,
            pad_token_id=0,
            stopping_criteria=StoppingCriteriaList([steps[name]]),
            return_dict_in_generate=True,
            output_scores=True,
        )
        seconds[name] = perf_counter() - start
    ours, theirs = outputs["vmm"], outputs["dynamic"]
    same = torch.equal(ours.sequences, theirs.sequences) and all(
        torch.equal(*both) for both in zip(ours.scores, theirs.scores, strict=True)
    )
    held = sum(2 * layer.keys.numel() * layer.keys.itemsize for layer in caches["dynamic"].layers)
    per_token = held / (scale.beams * caches["dynamic"].get_seq_length())
    ideal = per_token * (scale.prompt + scale.beams * (caches["dynamic"].get_seq_length() - scale.prompt))
    report.metrics |= {
        "beams_memory_ratio": steps["vmm"].most / held,
        "beams_memory_over_ideal": steps["vmm"].most / ideal,
        "beams_time_ratio": seconds["vmm"] / seconds["dynamic"],
        "beams_step_ratio": steps["vmm"].median_step() / steps["dynamic"].median_step(),
        "beams_tokens_identical": int(same),
    }
    for name in caches:
        report.peers[f"{name}_beams_seconds"] = seconds[name]
        report.peers[f"{name}_beams_step_ms"] = 1e3 * steps[name].median_step()
