"""Items of the GPU script: the benchmarks of ``vmm bench`` that run on a GPU, without its command line."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import os
import sys
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from typing import Any
from unittest import SkipTest

from benchmarks.gpu.worker import SECONDS

DEVICE = "cuda"
NAMES = ("map", "attention", "growth")
_LEFT_S = 25.0  # of a worker's time, for its start and for what a benchmark is at when its own is over


def items() -> dict[str, Callable[[], Any]]:
    return {name: partial(measured, name) for name in NAMES}


def measured(name: str) -> dict[str, Any]:
    if importlib.util.find_spec(f"vmm.benchmarks.{name}") is None:
        raise SkipTest(f"there is no benchmark {name}")
    bench = importlib.import_module(f"vmm.benchmarks.{name}")
    if DEVICE not in bench.DEVICES:
        raise SkipTest(f"{name} knows only {', '.join(bench.DEVICES)}")
    _restart_with(getattr(bench, "ENVIRONMENT", {}))
    _switch_cudnn_off()
    options = {}
    if "seconds" in inspect.signature(bench.run).parameters and SECONDS in os.environ:
        options["seconds"] = max(1.0, float(os.environ[SECONDS]) - _LEFT_S)
    return asdict(bench.run(lambda stage: print(f"{name}: {stage} ...", flush=True), DEVICE, **options))


def _switch_cudnn_off() -> None:
    """Its attention makes a plan for every length and its strides, most of a second each: a model that
    decodes would measure that. The attention benchmark asks it by name."""
    if importlib.util.find_spec("torch") is not None:
        import torch

        torch.backends.cuda.enable_cudnn_sdp(False)


def _restart_with(environment: dict[str, str]) -> None:
    """As ``vmm bench`` does: some variables are read before Python starts."""
    if any(os.environ.get(key) != value for key, value in environment.items()):
        command = [sys.executable, "-P", "-m", "benchmarks.gpu.worker", *sys.argv[1:]]
        os.execve(sys.executable, command, {**os.environ, **environment})
