"""One vLLM engine of `vmm bench vllm`, in a process of its own and in vLLM's environment.

``python -m vmm.benchmarks.vllm_worker JOB``, a job in JSON. ``serve`` (an engine) answers each line of the
standard input with a line of JSON. ``model`` (makes the tiny model in that folder) and ``schedule`` (see
vllm_schedule.py) print one, and end.
"""

from __future__ import annotations

import json
import os
import random
import sys
from pathlib import Path
from time import monotonic, process_time, sleep
from typing import Any

VOCABULARY = 512
ENGINE = {
    "skip_tokenizer_init": True, "enforce_eager": True, "dtype": "float32", "seed": 1, "max_model_len": 1024,
    "block_size": 32, "max_num_seqs": 64, "disable_log_stats": False,
}  # fmt: skip
COUNTED = {"vllm:num_preemptions": "preemptions", "vllm:prefix_cache_hits": "hits"}


def make_model(folder: str) -> dict[str, Any]:
    """A Llama of two layers, whose weights are so large that a token depends on all before it: a block with
    wrong contents changes what is generated."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(7)
    config = LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=128, intermediate_size=256, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, head_dim=32, max_position_embeddings=4096,
        initializer_range=0.3,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    return {}


def prompts(count: int) -> list[list[int]]:
    """Of 20 to 300 tokens; every third begins with one of four prefixes of 160."""
    found = []
    for number in range(count):
        draw = random.Random(number)
        prefix = (
            random.Random(1000 + number % 4).choices(range(3, VOCABULARY), k=160) if number % 3 == 0 else []
        )
        found.append(prefix + draw.choices(range(3, VOCABULARY), k=draw.randrange(20, 140)))
    return found


class Engine:
    def __init__(self, model: str, engine: dict[str, Any], connector: dict[str, Any] | None) -> None:
        from vllm import LLM

        options = ENGINE | engine
        if connector is not None:
            options["kv_transfer_config"] = {
                "kv_connector": "VmmConnector", "kv_role": "kv_both", "kv_connector_extra_config": connector
            }  # fmt: skip
        self.llm = LLM(model=model, **options)

    def generate(self, requests: int, tokens: int) -> list[list[int]]:
        from vllm import SamplingParams

        params = SamplingParams(temperature=0, max_tokens=tokens, ignore_eos=True, detokenize=False)
        given = [{"prompt_token_ids": prompt} for prompt in prompts(requests)]
        return [list(out.outputs[0].token_ids) for out in self.llm.generate(given, params, use_tqdm=False)]

    def counted(self) -> dict[str, float]:
        return {COUNTED[m.name]: m.value for m in self.llm.get_metrics() if m.name in COUNTED}


def serve(
    *, model: str, engine: dict[str, Any], connector: dict[str, Any] | None, pressed: bool = False
) -> None:
    """Serves [requests, tokens, seconds] from each line of the standard input. The answer has what was
    generated, the CPU time of the process for that, what vLLM has counted so far, and, for so many seconds
    after, ``watched``: [milliseconds since the last token, bytes that the KV memory takes]. ``pressed``: and
    how many milliseconds those blocks took to get memory for which there was none at first."""
    pressed_ms = _times_under_pressure() if pressed else []
    made = Engine(model, engine, connector)
    print("RESULT {}", flush=True)
    for line in sys.stdin:
        requests, tokens, watch_s = json.loads(line)
        pressed_ms.clear()
        start = process_time()
        found: dict[str, Any] = {"tokens": made.generate(requests, tokens)}
        found["cpu_s"] = process_time() - start
        over = monotonic()
        found |= made.counted() | {"rss_bytes": rss_bytes(), "watched": [], "pressed_ms": pressed_ms}
        while (since := monotonic() - over) < watch_s:
            found["watched"].append([1e3 * since, kv_bytes()])
            sleep(0.002)
        print("RESULT " + json.dumps(found), flush=True)


def _times_under_pressure() -> list[float]:
    """Which the plugin of this process will add to."""
    import vmm
    from vmm.integrations.vllm.link import Link

    asked: dict[int, float] = {}
    refused: set[int] = set()
    pressed_ms: list[float] = []
    announce, hear, keep = Link.announce, Link.hear, vmm.Blocks.keep

    def announced(link: Link, ids: Any, row: int) -> None:
        for block in ids:
            asked.setdefault(block, monotonic())
        announce(link, ids, row)

    def kept(blocks: vmm.Blocks, ids: Any) -> None:
        try:
            keep(blocks, ids)
        except vmm.OutOfPages:
            refused.update(ids)
            raise

    def heard(link: Link, rank: int, answer: Any) -> None:
        if answer.kind == "ready":
            now = monotonic()
            since = {block: asked.pop(block, now) for block in answer.ids}
            pressed_ms.extend(1e3 * (now - since[block]) for block in refused.intersection(since))
            refused.difference_update(since)
        hear(link, rank, answer)

    Link.announce, Link.hear = announced, heard  # type: ignore[method-assign]
    vmm.Blocks.keep = kept  # type: ignore[method-assign]
    return pressed_ms


def rss_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def kv_bytes() -> int:
    """What the kernel has given to this process's pools on the host: their files in memory, as it counts."""
    found = {}
    for descriptor in Path("/proc/self/fd").iterdir():
        try:
            if os.readlink(descriptor).startswith("/memfd:vmm"):
                about = os.stat(descriptor)
                found[about.st_ino] = about.st_blocks * 512
        except OSError:
            continue  # closed meanwhile
    return sum(found.values())


def main() -> None:
    job = json.loads(sys.argv[1])
    kind = job.pop("job")
    if kind == "serve":
        return serve(**job)
    if kind == "model":
        result = make_model(**job)
    else:
        from vmm.benchmarks.vllm_schedule import measured

        result = measured(**job)
    print("RESULT " + json.dumps(result), flush=True)


if __name__ == "__main__":
    main()
