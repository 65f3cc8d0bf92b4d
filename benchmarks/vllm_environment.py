"""Where `vmm bench vllm` finds vLLM, which pins its torch and so has an environment of its own, and how it
asks a process there."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
from collections import deque
from importlib.util import find_spec
from pathlib import Path
from time import monotonic
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


def _start(job: str, processes: bool, arguments: dict[str, Any]) -> subprocess.Popen[str]:
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


class Worker:
    """A process of vllm_worker.py. It is killed, with all that it started, at the end of the block, and when
    it has not answered for LIMIT_S."""

    def __init__(self, job: str, *, processes: bool = False, **arguments: Any) -> None:
        """``processes``: its scheduler and workers are processes of their own."""
        self.process = _start(job, processes, arguments)
        self._log: deque[str] = deque(maxlen=100)
        self._reader = threading.Thread(target=self._read_log, daemon=True)
        self._reader.start()

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *about: object) -> None:
        self._kill()
        self.process.wait()

    def ask(self, question: Any) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(question) + "\n")
        self.process.stdin.flush()

    def answer(self) -> dict[str, Any]:
        """What it says next. Raises Error where it has ended, or takes too long."""
        assert self.process.stdout is not None
        until = monotonic() + LIMIT_S
        limit = threading.Timer(LIMIT_S, self._kill)
        limit.start()
        try:
            for line in self.process.stdout:
                if line.startswith("RESULT "):
                    found: dict[str, Any] = json.loads(line.removeprefix("RESULT "))
                    return found
        finally:
            limit.cancel()
        late = monotonic() >= until
        self._kill()  # it may have left children
        self._reader.join()
        why = f"took longer than {LIMIT_S} s" if late else f"ended with {self.process.wait()}"
        raise Error(f"vLLM {why}: {''.join(self._log)[-3000:]}")

    def _kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)

    def _read_log(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self._log.append(line)


def result(job: str, **arguments: Any) -> dict[str, Any]:
    """What a worker says that ends by itself."""
    with Worker(job, **arguments) as worker:
        return worker.answer()
