"""Items of the GPU script: what the stand-in believes of the driver, asked of the driver that is here."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any

import conformance
from conformance_bench import Bench
from cuda_calls import Cuda


def items() -> dict[str, Callable[[], Any]]:
    library = ctypes.CDLL("libcuda.so.1")
    callers = {"": Cuda(library)}
    callers[""].do("cuInit", 0)
    callers[""].get_number("cuDevicePrimaryCtxRetain", 0)  # or each scenario would make the context anew
    with suppress(ImportError):  # cuda-bindings, the second caller, may not be here
        from bindings_calls import BindingsCuda

        callers[" by cuda-bindings"] = BindingsCuda(library)
    return {
        name + by: partial(tried, cuda, name)
        for by, cuda in callers.items()
        for name in conformance.SCENARIOS
    }


def tried(cuda: Cuda, name: str) -> dict[str, Any]:
    """The steps that differ from what is expected. ``dirty`` where the scenario could not clean up: then
    what follows needs a fresh process."""
    bench = Bench(cuda)
    stopped = None
    try:
        conformance.SCENARIOS[name](bench)
    except Exception as error:  # what it built upon differs
        stopped = f"{type(error).__name__}: {error}"
    result: dict[str, Any] = {
        "steps": len(bench.steps),
        "differences": [
            {"call": step.call, "expected": list(step.expected), "actual": step.actual}
            for step in bench.steps
            if not step.ok
        ],
    }
    if stopped is not None:
        result["stopped"] = stopped
    try:
        bench.close()
    except AssertionError as error:
        result.update(dirty=True, cleaning_up=str(error))
    return result
