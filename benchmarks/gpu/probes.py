"""Items of the GPU script: the probes at the end of the project's fact sheet on CUDA's virtual memory that
take their time, each alone in a process. Those that are over at once are in questions.py.

They find out what the real driver does, for the stand-in and the design to follow: being refused, crashing
and hanging are answers. Only data that comes out wrong is a failure.
"""

from __future__ import annotations

import ctypes
import importlib
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from conformance_bench import Bench
from cuda_calls import Cuda

Answers = Iterator[tuple[str, Any]]

# name: where the function of a Bench (tests/standin/conformance_bench.py) is. Each module is imported with
# the probe, so that a mistake in one costs its own probes only.
PROBES = {
    "1 attributes": "probe_what.attributes",
    "1 host pages": "probe_what.host_pages",
    "1 host NUMA pages": "probe_what.host_numa_pages",
    "2 call times": "probe_times.call_times",
    "2 spans": "probe_times.spans",
    "2 event times": "probe_times.event_times",
    "2 zeroing": "probe_times.zeroing",
    "3 beside long work": "probe_beside_work.beside_long_work",
    "3 launch jitter": "probe_jitter.launch_jitter",
    "6 host and device pages": "probe_memory.mixed_range",
    "7 tensors over unmapped addresses": "probe_memory.unmapped_tensor",
    "7 seqused_k": "probe_attention.seqused_recipe",
    "7 SDPA's choice": "probe_sdpa.choices",
    "7 decode by layout": "probe_attention.decode_by_layout",
}


def items() -> dict[str, Callable[[], Any]]:
    return {name: partial(answers, where) for name, where in PROBES.items()}


def answers(where: str, *arguments: Any) -> Answers:
    """The probe's own; what it leaves behind goes with the process."""
    module, _, name = where.rpartition(".")
    probe = getattr(importlib.import_module(f"benchmarks.gpu.{module}"), name)
    yield from probe(Bench(Cuda(ctypes.CDLL("libcuda.so.1"))), *arguments)
