"""What a CUDA driver allows and refuses, one scenario per rule. Runs on the stand-in and on a real GPU.

A scenario makes calls and says for each which CUresult it expects. Nothing here is undefined in the real
driver, and nothing uses the stand-in's own functions. ``run`` returns the steps; a step that differs on a GPU
is a mistake of the stand-in, to be corrected there.
"""

# They register their scenarios.
import conformance_capture  # noqa: F401
import conformance_memory  # noqa: F401
import conformance_sharing  # noqa: F401
import conformance_streams  # noqa: F401
from conformance_bench import SCENARIOS, Bench, Step
from cuda_calls import Cuda


def run(cuda: Cuda, name: str) -> list[Step]:
    bench = Bench(cuda)
    try:
        SCENARIOS[name](bench)
    finally:
        bench.close()
    return bench.steps
