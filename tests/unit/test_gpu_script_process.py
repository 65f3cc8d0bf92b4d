"""The GPU script in a process of its own: without a GPU, on the stand-in, and when it is killed."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from cuda_standin import library

ROOT = Path(__file__).parents[2]


def run_script(*arguments, **environment):
    return subprocess.run(
        [ROOT / "benchmarks/gpu/run.sh", *arguments],
        env={**os.environ, "PYTHON": sys.executable, **environment},
        cwd="/",
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_without_a_gpu_it_says_so(tmp_path):
    (tmp_path / "libcuda.so.1").write_bytes(b"")  # what there is of it: nothing
    ran = run_script(LD_LIBRARY_PATH=str(tmp_path))
    assert ran.returncode == 2
    assert ran.stderr.startswith("no CUDA device: ")
    assert run_script("--only", "nonsense").returncode == 2


def test_conformance_on_the_stand_in(tmp_path):
    ran = run_script(
        "--no-build", "--only", "conformance", OUT=str(tmp_path), LD_LIBRARY_PATH=str(Path(library()).parent)
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    results = json.loads((next(tmp_path.glob("gpu-vmm-stand-in-*.json"))).read_text())
    [conformance] = results["sections"]
    assert conformance["status"] == "passed"
    assert conformance["items"]["set_access_spans_handles"]["result"]["steps"] > 1
    assert {item["status"] for item in conformance["items"].values()} == {"ok"}


def test_a_driver_that_differs_is_told_of():
    code = """
import json, sys
sys.path[:0] = ["tests", "."]
import cuda_standin
standin = cuda_standin.configured()
from cuda_calls import Cuda
from benchmarks.gpu.conformance_items import tried
cuda = Cuda(standin.library)
found = {"fine": tried(cuda, "set_access_spans_handles")}
standin.fail_at(12)  # its cuMemSetAccess
found["differs"] = tried(cuda, "set_access_spans_handles")
standin.set(capacity=0)
found["stops"] = tried(cuda, "set_access_spans_handles")
standin.set(capacity=2**30)
standin.fail_at(19)  # something of the cleaning up
found["stays"] = tried(cuda, "set_access_spans_handles")
print(json.dumps(found))
"""
    ran = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False
    )
    assert ran.returncode == 0, ran.stderr
    found = json.loads(ran.stdout)
    assert found["fine"] == {"steps": 3, "differences": []}
    assert {"call": "cuMemSetAccess", "expected": [0], "actual": 999} in found["differs"]["differences"]
    assert "cuMemCreate" in found["stops"]["stopped"]
    assert found["stays"]["dirty"]
    assert "CUresult 999" in found["stays"]["cleaning_up"]


def started(tmp_path, items, *arguments):
    """The script, in a process of its own, with one section of these items."""
    (tmp_path / "made_items.py").write_text(items)
    code = f"""
import sys
from pathlib import Path
from benchmarks.gpu import __main__ as script, crew, machine
from benchmarks.gpu.sections import Section, sections
crew.BUILD = Path({str(tmp_path / "build")!r})
machine.cuda_devices = lambda: ([{{"name": "NVIDIA Made-Up", "memory_bytes": 1}}], "")
wrong = next(each for each in sections() if each.name == "probes").judge
made = crew.Crew("made_items", 30, built=False, separate=True)
script.sections = lambda build: [Section("made", made, 60, wrong), Section("next", made, 60, wrong)]
sys.exit(script.main(sys.argv[1:]))
"""
    return subprocess.Popen(
        [sys.executable, "-c", code, "--out", str(tmp_path / "out"), *arguments],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)])},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def written(tmp_path):
    """The results, once the item that hangs has begun."""
    for _ in range(3000):
        for path in (tmp_path / "out").glob("gpu-made-up-*.json"):
            results = json.loads(path.read_text())
            if "hangs" in results["sections"][0]["items"]:
                return results
        time.sleep(0.01)
    raise AssertionError("nothing was written")


HANGS = """
import os, time
def hangs():
    yield "pid", os.getpid()
    time.sleep(1000)
def items(): return {"fine": lambda: {"nan": float("nan")}, "hangs": hangs, "after": int}
"""


def ended(pid):
    for _ in range(500):
        try:
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in "ZX":
                return True
        except OSError:
            return True
        time.sleep(0.01)
    return False


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_whatever_kills_it_the_results_are_there(tmp_path, number):
    process = started(tmp_path, HANGS)
    written(tmp_path)
    os.kill(process.pid, number)
    said = process.communicate(timeout=60)[0]
    results = written(tmp_path)
    assert results["device"]["name"] == "NVIDIA Made-Up"
    assert {"commit", "driver", "sources"} <= set(results["machine"])
    made, following = results["sections"]
    assert made["items"]["fine"] == {"values": {}, **made["items"]["fine"]}
    assert made["items"]["fine"]["result"] == {"nan": "nan"}
    assert (following["status"], following["reason"]) == ("not run", "not reached")
    assert not results["complete"]
    table = next((tmp_path / "out").glob("*.md")).read_text()
    assert "| made |" in table
    if number != signal.SIGKILL:
        assert process.returncode == 1, said
        assert results["stopped"] == signal.Signals(number).name
        assert made["status"] == "cut short"
        assert "| made | cut short |" in said
    pid = made["items"]["hangs"]["values"].get("pid")
    assert pid is None or ended(pid)
    left = {path.suffix for path in (tmp_path / "out").iterdir()}
    assert left - {".part" if number == signal.SIGKILL else ""} == {".json", ".md"}  # killed while writing
