"""Items of the GPU script: the seven probes at the end of the project's fact sheet on CUDA's virtual memory.

They find out what the real driver does, for the stand-in and the design to follow: being refused, crashing
and hanging are answers. Only data that comes out wrong is a failure.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from conformance_bench import Bench
from cuda_calls import Cuda

from benchmarks.gpu import (
    probe_attention,
    probe_beside_work,
    probe_captures,
    probe_memory,
    probe_refusals,
    probe_times,
    probe_what,
)

Answers = Iterator[tuple[str, Any]]

# name: a function of a Bench (see tests/standin/conformance_bench.py)
PROBES: dict[str, Callable[[Bench], Answers]] = {
    "1 attributes": probe_what.attributes,
    "1 host pages": probe_what.host_pages,
    "1 host NUMA pages": probe_what.host_numa_pages,
    "2 call times": probe_times.call_times,
    "2 spans": probe_times.spans,
    "3 beside long work": probe_beside_work.beside_long_work,
    "3 launch jitter": probe_beside_work.launch_jitter,
    "4 refusals": probe_refusals.refusals,
    "5 captures": probe_captures.captures,
    "6 host and device pages": probe_memory.mixed_range,
    "7 tensors over unmapped addresses": probe_memory.unmapped_tensor,
    "7 seqused_k": probe_attention.seqused_recipe,
    "7 decode by layout": probe_attention.decode_by_layout,
}


def items() -> dict[str, Callable[[], Any]]:
    cuda = Cuda(ctypes.CDLL("libcuda.so.1"))
    return {name: partial(answers, probe, cuda) for name, probe in PROBES.items()}


def answers(probe: Callable[[Bench], Answers], cuda: Cuda) -> Answers:
    """The probe's own; what it leaves behind goes with the process."""
    yield from probe(Bench(cuda))
