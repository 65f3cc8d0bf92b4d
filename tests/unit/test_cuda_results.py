"""Which of CUDA's errors end a context, and that our numbers are cuda.h's. On the stand-in."""

import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import cuda_standin
import pytest

from child import run_child

ROOT = Path(__file__).parents[2]
HEADERS = [
    Path(root) / "include" / "cuda.h"
    for root in (os.environ.get("CUDA_HOME", ""), "/usr/local/cuda", *Path("/usr/local").glob("cuda-*"))
    if root
]
# What cuda.h says of an error after which nothing works any more.
ENDS = re.compile(r"must be terminated\s+and relaunched|context\s+cannot be used anymore")
# It does not say so of these two, but the work that they stopped is lost: see cuda_results.h.
LOST_WITH_THE_HARDWARE = {214, 220}
ENDINGS = {214, 220, 226, 700, 702, 710, 714, 715, 716, 717, 718, 719, 721, 810, 911}


def header() -> Path:
    found = next((path for path in HEADERS if path.exists()), None)
    if found is None:
        pytest.skip("there is no cuda.h here")
    return found


def results_of(text: str) -> dict[int, tuple[str, str]]:
    """Code: its name, and what the header says of it."""
    listed = text[text.index("typedef enum cudaError_enum") : text.index("} CUresult;")]
    entries = re.findall(r"/\*\*(.*?)\*/\s*(CUDA_\w+)\s*=\s*(\d+)", listed, re.DOTALL)
    return {int(code): (name, re.sub(r"\s*\n\s*\*\s*", " ", words)) for words, name, code in entries}


def known_to_the_standin() -> set[int]:
    source = (ROOT / "tests" / "standin" / "errors.cpp").read_text()
    return {int(code) for code in re.findall(r"Text\{(\d+),", source)}


def test_what_cuda_h_says_of_each():
    results = results_of(header().read_text())
    assert len(results) > 90
    assert {code for code, (_, words) in results.items() if ENDS.search(words)} == (
        ENDINGS - LOST_WITH_THE_HARDWARE
    )


def test_each_error_ends_the_context_or_does_not():
    codes = sorted(known_to_the_standin() - {0})
    result = run_child(f"""
        import ctypes, json
        standin = ctypes.CDLL({cuda_standin.library()!r})
        standin.standin_fail_at.argtypes = [ctypes.c_int64, ctypes.c_int, ctypes.c_int64]
        from vmm import DriverError, _core
        ended, left = [], []
        for code in {codes}:
            driver = _core.CudaDriver(0)
            left.append(driver)  # one that is lost gives nothing back
            standin.standin_fail_at(1, code, 1)
            try:
                driver.reserve(1 << 21, 1 << 21)
            except DriverError as error:
                assert f"({{code}})" in str(error), error
                told = "restart the process" in str(error)
            try:
                driver.free_reservation(driver.reserve(1 << 21, 1 << 21), 1 << 21)
                lost = False
            except DriverError as error:
                assert f"was ended by" in str(error) and f"({{code}})" in str(error), error
                lost = True
            assert told == lost, code
            if lost: ended.append(code)
        print(json.dumps(ended))
    """)
    assert result.returncode == 0, result.stderr
    assert set(json.loads(result.stdout)) == ENDINGS


def test_our_declarations_are_cuda_h_s():
    """cuda_abi_check.cpp has nothing to run: it compiles, or does not."""
    compiler = shutil.which("c++") or shutil.which("g++")
    if compiler is None:
        pytest.skip("there is no compiler here")
    where = [f"-isystem{header().parent}", f"-I{ROOT / 'csrc'}"]
    for source in ("csrc/driver/cuda_abi_check.cpp", "tests/standin/abi_check.cpp"):
        command = [compiler, "-std=c++20", "-fsyntax-only", *where, str(ROOT / source)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
        assert done.returncode == 0, done.stderr
