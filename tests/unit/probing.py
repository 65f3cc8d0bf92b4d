"""Running the GPU script's probes on the stand-in, in child processes."""

import json
from pathlib import Path

from child import run_child

ROOT = Path(__file__).parents[2]
PREAMBLE = f"""
import json, sys
sys.path[:0] = [{str(ROOT)!r}, {str(ROOT / "tests")!r}, {str(ROOT / "tests/unit")!r}]
import cuda_standin
standin = cuda_standin.configured(granularity=65536, capacity=2**30)
standin.set(queue_limit=4096)
from conformance_bench import Bench
from cuda_calls import Cuda
from benchmarks.gpu import (
    probe_attention, probe_beside_work, probe_jitter, probe_memory, probe_over_read, probe_sdpa, probe_times,
    probe_what, probes, questions
)
KIB = 1024
import os
os.environ["LD_LIBRARY_PATH"] = {str(ROOT / "build/standin")!r}
os.environ["PYTHONPATH"] = os.pathsep.join([{str(ROOT)!r}, {str(ROOT / "tests/standin")!r}])
def show(**probes):
    cuda = Cuda(standin.library)
    print(json.dumps({{name: dict(probe(Bench(cuda))) for name, probe in probes.items()}}))
"""


def found(code):
    child = run_child(PREAMBLE + code, timeout=100)
    assert child.returncode == 0, child.stderr
    return json.loads(child.stdout.splitlines()[-1])
