"""Items of the GPU script: the tests of tests/gpu, without pytest."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

from benchmarks.gpu.crew import ROOT


def items() -> dict[str, Callable[[], Any]]:
    found = {}
    for path in sorted((ROOT / "tests/gpu").glob("test_*.py")):
        for name, test in vars(importlib.import_module(path.stem)).items():
            if name.startswith("test_"):
                found[f"{path.stem}: {name}"] = test
    return found
