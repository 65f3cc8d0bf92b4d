"""Real vLLM engines on the CPU, each in a process of its own with a time limit.

`run` starts child.py in vLLM's environment with our package beside it, and returns what it printed.
"""

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
MODELS = ROOT / "build/vllm-models"
LIMIT_S = 300

LLAMA = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": 512, "hidden_size": 128,
    "intermediate_size": 256, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
    "head_dim": 32, "max_position_embeddings": 4096, "rms_norm_eps": 1e-5, "hidden_act": "silu",
    "tie_word_embeddings": False, "torch_dtype": "float32", "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip


@cache
def model(name: str = "llama", **changes: Any) -> str:
    """The folder of a tiny model; vLLM makes up its weights from a fixed seed."""
    folder = MODELS / name
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(LLAMA | changes))
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
        raise AssertionError(f"the engine took longer than {limit_s} s\n{out[-2000:]}\n{err[-6000:]}") from None
    finally:
        try:
            os.killpg(child.pid, signal.SIGKILL)  # workers that outlived it
        except ProcessLookupError:
            pass
    for line in out.splitlines():
        if line.startswith("RESULT "):
            return json.loads(line.removeprefix("RESULT ")) | {"log": err}
    return {"error": err, "returncode": child.returncode}


def run(job: dict[str, Any], *, processes: bool = False) -> dict[str, Any]:
    return finish(start(job, processes=processes))
