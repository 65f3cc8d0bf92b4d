"""A whole serving engine on KVCache: ``engine_example.py`` serves 200 requests of long-tailed lengths on the
CPU.

Metrics: ``tokens_identical`` is 1 if every request got the tokens that one-by-one generation with
DynamicCache gives it, preemptions included. ``stall_fraction_of_time``: time that steps waited for pages ÷
all. ``fragmentation``: mean over iterations of (mapped − live) ÷ mapped bytes of running sequences, what is
mapped ahead of them included; what finished ones left apart. ``preempted``: how often.
``throughput_vs_dynamic``: tokens a second ÷ those of the same engine with a DynamicCache for each request,
which has no budget and computes nothing again; ``…_unpreempted``: with a budget that is large enough, too.
"""

from __future__ import annotations

import random
import statistics
from collections.abc import Callable
from time import perf_counter
from typing import Any

import torch
from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM

from vmm.benchmarks.engine_example import ATTENTION, Engine, Request, Slots, Store, Tensors
from vmm.benchmarks.report import Report, environment, rounded
from vmm.kv_cache import KVCache

DEVICES = ("cpu",)

REQUESTS = 200
AT_ONCE = 16
MAX_TOKENS = 1024
LAYERS, HEADS, DIM = 2, 2, 32
TOKEN_BYTES = LAYERS * 2 * HEADS * DIM * 8
BUDGET = 72 * 2**16  # so small that requests are preempted


def run(progress: Callable[[str], None], device: str) -> Report:
    report = Report("engine", device, environment=environment("torch", "transformers"))
    model = small_model()
    progress("on KVCache")
    ours, fragmentation = requests(), []
    with make_cache(BUDGET) as cache:

        def note() -> None:
            stats = cache.stats()
            fragmentation.append(1 - stats.live_bytes / stats.running_bytes)

        seconds, engine = served(model, Slots(cache), ours, note)
        report.metrics["stall_fraction_of_time"] = 1e-3 * cache.pool.stats().stall_ms / seconds
    report.metrics["fragmentation"] = statistics.mean(fragmentation)
    report.metrics["preempted"] = engine.preempted
    progress("on KVCache, with enough memory")
    with make_cache(AT_ONCE * MAX_TOKENS * TOKEN_BYTES) as cache:
        enough_seconds, _ = served(model, Slots(cache), requests(), lambda: None)
    progress("with a DynamicCache each")
    theirs = requests()
    their_seconds, _ = served(model, Tensors(), theirs, lambda: None)
    report.metrics["throughput_vs_dynamic"] = their_seconds / seconds
    report.metrics["throughput_vs_dynamic_unpreempted"] = their_seconds / enough_seconds
    progress("one by one")
    expected = one_by_one(model)
    same = [request.tokens == tokens for request, tokens in zip(ours, expected, strict=True)]
    report.metrics["tokens_identical"] = int(all(same))
    report.metrics = rounded(report.metrics.items())
    made = sum(request.new_tokens for request in ours)
    report.peers = {
        "peer": "transformers DynamicCache for each request",
        "vmm_tokens_per_s": round(made / seconds, 1),
        "dynamic_tokens_per_s": round(made / their_seconds, 1),
    }
    return report


def make_cache(budget: int) -> KVCache:
    return KVCache(
        LAYERS,
        HEADS,
        DIM,
        torch.float64,
        max_tokens=MAX_TOKENS,
        max_sequences=AT_ONCE,
        budget=budget,
        layers_per_extent=LAYERS,  # most requests are short: 32 tokens a page
    )


def small_model() -> Any:
    """In float64, so that the order of summing decides no token."""
    config = LlamaConfig(
        num_hidden_layers=LAYERS,
        hidden_size=128,
        num_attention_heads=4,
        num_key_value_heads=HEADS,
        head_dim=DIM,
        intermediate_size=256,
        vocab_size=256,
        max_position_embeddings=MAX_TOKENS,
    )
    torch.manual_seed(0)
    return LlamaForCausalLM(config).eval().double()


def requests() -> list[Request]:
    """The same ones each time: prompts and answers of Pareto-distributed lengths."""
    dice = random.Random(0)
    made = []
    for _ in range(REQUESTS):
        prompt = min(700, int(20 * dice.paretovariate(1.1)))
        answer = min(200, int(10 * dice.paretovariate(1.3)))
        made.append(Request([dice.randrange(3, 256) for _ in range(prompt)], answer))
    return made


def served(
    model: Any, store: Store, work: list[Request], after_step: Callable[[], None]
) -> tuple[float, Engine]:
    """Seconds, and the engine that took them."""
    model.set_attn_implementation(ATTENTION)
    engine = Engine(model, store, AT_ONCE, after_step)
    start = perf_counter()
    engine.serve(work)
    return perf_counter() - start, engine


def one_by_one(model: Any) -> list[list[int]]:
    model.set_attn_implementation("sdpa")
    out = []
    for request in requests():
        made = model.generate(
            torch.tensor([request.tokens]),
            past_key_values=DynamicCache(config=model.config),
            max_new_tokens=request.new_tokens,
            do_sample=False,
            pad_token_id=0,
            eos_token_id=None,
        )
        out.append(made[0].tolist())
    return out
