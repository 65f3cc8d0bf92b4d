"""Where `vmm bench vllm` finds vLLM, which pins its torch and so has an environment of its own, and how it
asks a process there."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import vmm
from vmm.errors import Error

LIMIT_S = 600
QUIET = {
    "OMP_NUM_THREADS": "1",  # without it a run takes 15 times as long
    "HF_HUB_OFFLINE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_LOGGING_LEVEL": "ERROR",
    "VLLM_WORKER_MULTIPROC_METHOD": "spawn",
}


def interpreter() -> tuple[str, dict[str, str]]:
    """A Python that has vLLM and us, and the variables it needs for that: this one, or that of VMM_VLLM_ENV,
    or of the environment that `make test-vllm` has made. Raises Error where there is none."""
    found = find_spec("vllm")
    if (
        found is not None and found.origin is not None
    ):  # without an origin it is some folder that has that name
        return sys.executable, {}
    home = os.environ.get("VMM_VLLM_ENV") or _made_by_tests()
    if home is None or not (python := Path(home) / "bin" / "python").exists():
        raise Error(
            f"no vLLM at {home or 'hand'}: install it beside vmm, or name its environment in VMM_VLLM_ENV, or"
            " let `make test-vllm` make one"
        )
    site = Path(vmm.__file__).parents[1] / "build" / "vllm-site"
    if not site.exists():
        raise Error(f"vmm is not installed for {python}: make build/vllm-site/.installed")
    return str(python), {"PYTHONPATH": str(site)}


def _made_by_tests() -> str | None:
    """The newest complete one; tests/vllm/environment makes them."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "vmm"
    stamps = sorted(cache.glob("venv-vllm-*/complete"), key=lambda stamp: stamp.stat().st_mtime)
    return str(stamps[-1].parent) if stamps else None


def start(job: str, *, processes: bool = False, **arguments: Any) -> subprocess.Popen[str]:
    """A process of vllm_worker.py. ``processes``: its scheduler and workers are processes of their own."""
    python, environment = interpreter()
    workers = arguments.get("engine", {}).get("tensor_parallel_size", 1)
    if workers > 1:  # else vLLM wants a NUMA node for each
        environment["VLLM_CPU_OMP_THREADS_BIND"] = "|".join(map(str, range(workers)))
    return subprocess.Popen(
        [python, "-m", "vmm.benchmarks.vllm_worker", json.dumps({"job": job, **arguments})],
        # -P would do for the first of these, but not reach vLLM's own children.
        env={
            **os.environ,
            "PYTHONSAFEPATH": "1",
            "VLLM_ENABLE_V1_MULTIPROCESSING": str(int(processes)),
            **QUIET,
            **environment,
        },
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def finish(process: subprocess.Popen[str]) -> dict[str, Any]:
    """What the process found."""
    try:
        out, err = process.communicate(timeout=LIMIT_S)
    except subprocess.TimeoutExpired:
        raise Error(f"vLLM took longer than {LIMIT_S} s") from None
    finally:
        end(process)
    for line in out.splitlines():
        if line.startswith("RESULT "):
            found: dict[str, Any] = json.loads(line.removeprefix("RESULT "))
            return found
    raise Error(f"vLLM ended with {process.returncode}: {err[-3000:]}")


def end(process: subprocess.Popen[str]) -> None:
    """Kills it, with every process that it started."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
