"""Real vLLM engines on the CPU, each in a process of its own with a time limit.

`run` starts child.py in vLLM's environment with our package beside it, and returns what it printed.
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
SITE = os.environ.get("VMM_VLLM_SITE", str(ROOT / "build/vllm-site"))
MODELS = Path(os.environ.get("VMM_VLLM_MODELS", str(ROOT / "build/vllm-models")))
LIMIT_S = 300

LLAMA = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": 512, "hidden_size": 128,
    "intermediate_size": 256, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
    "head_dim": 32, "max_position_embeddings": 4096, "rms_norm_eps": 1e-5, "hidden_act": "silu",
    "tie_word_embeddings": False, "torch_dtype": "float32", "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip


@cache
def model(name: str = "llama", **changes: Any) -> str:
    """The folder of a tiny model. Its weights are large enough that each token depends on all before it, so
    that a block with wrong contents changes what is generated."""
    folder = MODELS / name
    config = LLAMA | changes
    if (folder / "config.json").exists() and json.loads((folder / "config.json").read_text()) == config:
        return str(folder)
    folder.mkdir(parents=True, exist_ok=True)
    import torch
    from safetensors.torch import save_file

    hidden, heads, kv_heads = (
        config["hidden_size"],
        config["num_attention_heads"],
        config["num_key_value_heads"],
    )
    inner, vocab, dim = config["intermediate_size"], config["vocab_size"], config["head_dim"]
    draw = torch.Generator().manual_seed(7)

    def normal(rows: int, columns: int, gain: float = 1.0) -> torch.Tensor:
        return torch.randn(rows, columns, generator=draw) * gain / columns**0.5

    weights = {
        "model.embed_tokens.weight": normal(vocab, hidden, 4),
        "lm_head.weight": normal(vocab, hidden, 4),
    }
    weights["model.norm.weight"] = torch.ones(hidden)
    for number in range(config["num_hidden_layers"]):
        layer = f"model.layers.{number}."
        weights |= {
            f"{layer}self_attn.q_proj.weight": normal(heads * dim, hidden, 1.5),
            f"{layer}self_attn.k_proj.weight": normal(kv_heads * dim, hidden, 1.5),
            f"{layer}self_attn.v_proj.weight": normal(kv_heads * dim, hidden, 3),
            f"{layer}self_attn.o_proj.weight": normal(hidden, heads * dim, 3),
            f"{layer}mlp.gate_proj.weight": normal(inner, hidden),
            f"{layer}mlp.up_proj.weight": normal(inner, hidden),
            f"{layer}mlp.down_proj.weight": normal(hidden, inner),
            f"{layer}input_layernorm.weight": torch.ones(hidden),
            f"{layer}post_attention_layernorm.weight": torch.ones(hidden),
        }
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(config))
    return str(folder)


@cache
def olmo() -> str:
    """A tiny Olmo 3: three of its four layers have a sliding window of 64 tokens."""
    return _of_transformers(
        "olmo3", "Olmo3",
        num_hidden_layers=4, num_key_value_heads=2, sliding_window=64,
        layer_types=["sliding_attention"] * 3 + ["full_attention"],
    )  # fmt: skip


@cache
def deepseek() -> str:
    """A tiny DeepSeek V2 with latent attention (MLA): a block has 36 KiB in each layer, which divides no
    page."""
    return _of_transformers(
        "deepseek2", "DeepseekV2",
        num_hidden_layers=3, num_key_value_heads=4,
        kv_lora_rank=512, q_lora_rank=None, qk_rope_head_dim=64, qk_nope_head_dim=64, v_head_dim=64,
        first_k_dense_replace=3, n_routed_experts=2, num_experts_per_tok=1, moe_intermediate_size=64,
        n_group=1, topk_group=1,
    )  # fmt: skip


def _of_transformers(name: str, architecture: str, **config: Any) -> str:
    """The folder of a tiny model that transformers makes, with random weights."""
    folder = MODELS / name
    if not (folder / "model.safetensors").exists():
        import torch
        import transformers

        torch.manual_seed(7)
        common = {
            "vocab_size": 512, "hidden_size": 128, "intermediate_size": 256, "num_attention_heads": 4,
            "max_position_embeddings": 4096, "initializer_range": 0.2, "dtype": "float32",
            "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
        }  # fmt: skip
        made = getattr(transformers, f"{architecture}Config")(**common, **config)
        getattr(transformers, f"{architecture}ForCausalLM")(made).save_pretrained(folder)
    return str(folder)


def connector(**extra: Any) -> dict[str, Any]:
    return {"kv_connector": "VmmConnector", "kv_role": "kv_both", "kv_connector_extra_config": extra}


def start(job: dict[str, Any], *, processes: bool = False) -> subprocess.Popen[str]:
    """Starts an engine for ``job`` (see child.py). ``processes``: scheduler and workers each in their own."""
    env = os.environ | {
        "PYTHONPATH": SITE,
        "VLLM_ENABLE_V1_MULTIPROCESSING": "1" if processes else "0",
        "HF_HUB_OFFLINE": "1",
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_LOGGING_LEVEL": os.environ.get("VLLM_LOGGING_LEVEL", "WARNING"),
        "OMP_NUM_THREADS": "1",  # without it a run takes 15 times as long
        "VLLM_WORKER_MULTIPROC_METHOD": "spawn",
    }
    if (workers := job.get("engine", {}).get("tensor_parallel_size", 1)) > 1:
        env["VLLM_CPU_OMP_THREADS_BIND"] = "|".join(map(str, range(workers)))  # a machine with one NUMA node
    job = {"model": model()} | job
    child = subprocess.Popen(
        [sys.executable, str(HERE / "child.py"), json.dumps(job)],
        env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip
    return child


def finish(child: subprocess.Popen[str], limit_s: float = LIMIT_S) -> dict[str, Any]:
    """What the child found, or {"error": …} where it ended with an exception."""
    try:
        out, err = child.communicate(timeout=limit_s)
    except subprocess.TimeoutExpired:
        os.killpg(child.pid, signal.SIGKILL)
        out, err = child.communicate()
        raise AssertionError(
            f"the engine took longer than {limit_s} s\n{out[-2000:]}\n{err[-6000:]}"
        ) from None
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)  # workers that outlived it
    for line in out.splitlines():
        if line.startswith("RESULT "):
            return json.loads(line.removeprefix("RESULT ")) | {"log": err}
    return {"error": err, "returncode": child.returncode}


def run(job: dict[str, Any], *, processes: bool = False) -> dict[str, Any]:
    """The result of an engine that must not fail."""
    found = finish(start(job, processes=processes))
    assert "error" not in found, found["error"][-6000:]
    return found


def run_failing(job: dict[str, Any], *, processes: bool = False) -> str:
    """What an engine that must fail says."""
    found = finish(start(job, processes=processes))
    assert "error" in found, "the engine did not fail"
    return str(found["error"])
