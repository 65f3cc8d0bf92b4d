"""``vmm demo``: the same text generated twice, with DynamicCache and with VmmCache."""

import statistics
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from rich.console import Console
from rich.progress import Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, DynamicCache, LlamaConfig
from transformers.generation.streamers import BaseStreamer

from vmm.errors import InvalidArgument
from vmm.integrations.transformers.cache import VmmCache
from vmm.units import format_bytes

# The published config of HuggingFaceTB/SmolLM2-135M: a real model, small enough for two cores.
SMOLLM2_135M = {
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "max_position_embeddings": 8192,
    "rope_parameters": {"rope_type": "default", "rope_theta": 100_000.0},
    "vocab_size": 49152,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": True,
}
WARM_UP_TOKENS = 16


@dataclass
class Arm:
    """One generation and what it took; times in seconds."""

    name: str
    cache: DynamicCache
    sequence: torch.Tensor | None = None
    token_times: list[float] = field(default_factory=list)
    prefill_time: float = 0.0
    update_times: list[float] = field(default_factory=list)  # one a forward, over all layers


class _Clock(BaseStreamer):
    """Notes when each token comes out."""

    def __init__(self, arm: Arm, tick: Callable[[], None]) -> None:
        self._arm = arm
        self._tick = tick
        self._last = perf_counter()
        self._prompt_seen = False

    def put(self, value: torch.Tensor) -> None:
        now = perf_counter()
        if not self._prompt_seen:  # generate() hands over the prompt first
            self._prompt_seen = True
        else:
            if self._arm.prefill_time:
                self._arm.token_times.append(now - self._last)
            else:
                self._arm.prefill_time = now - self._last
            self._tick()
        self._last = now

    def end(self) -> None:
        pass


def run(model_name: str | None, text_file: Path | None, context: int, new_tokens: int) -> bool:
    """Prints the comparison; True when both caches gave the same tokens."""
    console = Console()
    model, ids, note = _load(model_name, text_file, context)
    console.print(note)
    max_tokens = ids.shape[1] + new_tokens
    arms = [
        Arm("DynamicCache", DynamicCache(config=model.config)),
        Arm("VmmCache", VmmCache(model.config, max_tokens=max_tokens)),
    ]
    with (
        torch.inference_mode(),
        Progress(
            *Progress.get_default_columns(),
            TimeElapsedColumn(),
            TextColumn("{task.fields[arm]}"),
            console=console,
        ) as progress,
    ):
        task = progress.add_task("generating", total=2 * new_tokens, arm="warming up")
        model.generate(ids[:, :WARM_UP_TOKENS], max_new_tokens=2, do_sample=False, pad_token_id=0)
        for arm in arms:
            progress.update(task, arm=arm.name)
            _generate(model, ids, new_tokens, arm, lambda: progress.advance(task))
    identical = torch.equal(arms[0].sequence, arms[1].sequence)
    console.print(_table(arms, identical))
    return identical


def _load(model_name: str | None, text_file: Path | None, context: int) -> tuple[Any, torch.Tensor, str]:
    if text_file is None:
        text, source = metadata.metadata("kvmm").json["description"], "the README"
    elif text_file.is_file():
        text, source = text_file.read_text(errors="replace"), str(text_file)
    else:
        raise InvalidArgument(f"--text is {text_file}; expected a file")
    torch.manual_seed(0)
    if model_name is None:
        config = LlamaConfig(**SMOLLM2_135M)
        model = AutoModelForCausalLM.from_config(config)
        what = "SmolLM2-135M's architecture, random weights"
        tokens = list(text.encode())
    else:
        config = AutoConfig.from_pretrained(model_name)
        model = AutoModelForCausalLM.from_pretrained(model_name)
        what = model_name
        tokens = _tokenise(model_name, text)
    tokens = tokens[:context]
    if not tokens:
        raise InvalidArgument(f"--text is {source}; expected some text")
    size = f"{model.num_parameters() / 1e6:.0f}M, {model.dtype}"
    note = f"Model: {what} ({size}). Prompt: {len(tokens)} tokens of {source}."
    return model.eval(), torch.tensor([tokens]), note


def _tokenise(model_name: str, text: str) -> list[int]:
    try:
        tokenizer = AutoTokenizer.from_pretrained(model_name)
    except (OSError, ValueError):  # a model without a tokenizer: bytes will do
        return list(text.encode())
    return list(tokenizer(text)["input_ids"])


def _generate(model: Any, ids: torch.Tensor, new_tokens: int, arm: Arm, tick: Callable[[], None]) -> None:
    _time_updates(arm)
    arm.sequence = model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        past_key_values=arm.cache,
        min_new_tokens=new_tokens,
        max_new_tokens=new_tokens,
        do_sample=False,
        pad_token_id=0,
        streamer=_Clock(arm, tick),
    )


def _time_updates(arm: Arm) -> None:
    update = arm.cache.update

    def timed(keys: torch.Tensor, values: torch.Tensor, layer: int, *args: Any, **kwargs: Any) -> Any:
        start = perf_counter()
        result = update(keys, values, layer, *args, **kwargs)
        taken = perf_counter() - start
        if layer == 0:
            arm.update_times.append(taken)
        else:
            arm.update_times[-1] += taken
        return result

    arm.cache.update = timed


def _table(arms: list[Arm], identical: bool) -> Table:
    table = Table(title=f"identical: {'yes' if identical else 'NO'}")
    table.add_column("")
    for arm in arms:
        table.add_column(arm.name, justify="right")

    def row(label: str, value: Callable[[Arm], str]) -> None:
        table.add_row(label, *(value(arm) for arm in arms))

    def stalls(arm: Arm) -> str:
        if not isinstance(arm.cache, VmmCache):
            return "-"
        stats = arm.cache.pool.stats()
        return f"{stats.stalls} ({stats.stall_ms:.1f} ms, prefill's first layer included)"

    row("prefill", lambda arm: f"{arm.prefill_time:.2f} s")
    row("time per token (median)", lambda arm: f"{1e3 * statistics.median(arm.token_times):.1f} ms")
    row(
        "cache update per token (median)",
        lambda arm: f"{1e3 * statistics.median(arm.update_times[1:]):.2f} ms",
    )
    row("live", lambda arm: format_bytes(_live_bytes(arm.cache)))
    row(
        "mapped",
        lambda arm: format_bytes(arm.cache.stats().mapped_bytes) if isinstance(arm.cache, VmmCache) else "-",
    )
    row("stalls", stalls)
    return table


def _live_bytes(cache: DynamicCache) -> int:
    return sum(
        t.numel() * t.itemsize for layer in cache.layers for t in (layer.keys, layer.values) if t is not None
    )
