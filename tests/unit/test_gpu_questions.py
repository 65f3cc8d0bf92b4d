"""The GPU script's questions on the stand-in. What they find is the stand-in's; here it is only looked at to
see that what was asked is what it says."""

from pathlib import Path

import pytest
from cuda_standin import library

from benchmarks.gpu import crew as crew_module
from benchmarks.gpu.clock import Deadline
from benchmarks.gpu.crew import Crew


@pytest.fixture(scope="module")
def answered(tmp_path_factory):
    """Every question, asked by the crew as on a GPU, with the stand-in as libcuda.so.1."""
    folder = tmp_path_factory.mktemp("questions")
    items = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(crew_module, "BUILD", folder / "build")
        patch.setenv("LD_LIBRARY_PATH", str(Path(library()).parent))
        Crew("benchmarks.gpu.questions", each_s=60, built=False).run(Deadline(200), items)
    return items


def test_every_question_is_answered(answered):
    """The stand-in ends the process of who uses what is not there: those, and only those, are lost on it."""
    lost = {name for name, item in answered.items() if item["status"] == "died"}
    assert all("unmapped before" in name or "not reserved" in name for name in lost)
    unanswered = {name for name, item in answered.items() if "not answered" in (item.get("values") or {})}
    assert all(name.startswith("10 ") for name in unanswered)
    assert {item["status"] for item in answered.values()} <= {"ok", "died"}
    counts = [sum(name.startswith(f"{number} ") for name in answered) for number in (4, 5, 8, 9, 10)]
    assert counts == [25, 16, 25, 14, 8]


def test_refusals(answered):
    invalid, fine = "1 CUDA_ERROR_INVALID_VALUE", "0 CUDA_SUCCESS"

    def said(what):
        return answered[f"4 {what}"]["values"]["answer"]

    assert said("unmap a hole") == invalid
    assert said("unmap neighbours in one call") == said("open twice") == fine
    assert said("map less than the handle") == invalid
    assert said("map over half of a mapping") == invalid
    halves = said("unmap the first half of a mapping; read both; unmap all")
    assert halves == f"{invalid}, {fine}, {fine}, {fine}"
    comes_back = said("release a mapped handle; read; unmap; does the memory come back")
    assert comes_back == f"{fine}, {fine}, {fine}, yes"
    assert said("read an unmapped address") == invalid


def test_captures(answered):
    ways = answered["5 cuMemMap"]["values"]["answer"]
    assert len(ways) == 12
    assert ways["GLOBAL, own thread"].startswith("900 ")
    assert "capture 901" in ways["GLOBAL, own thread"]
    assert ways["GLOBAL, another thread"].startswith("900 ")
    assert ways["GLOBAL, another thread, RELAXED"] == "0 CUDA_SUCCESS; capture 0 CUDA_SUCCESS"
    assert ways["RELAXED, own thread, RELAXED"] == "0 CUDA_SUCCESS; capture 0 CUDA_SUCCESS"


def test_unmapping_in_ones_own_capture(answered):
    refused = answered["9 unmap in one's own global capture"]["values"]
    assert refused["unmap"].startswith("900 ")
    assert refused["end of the capture"].startswith("901 ")
    assert refused["the page is still there"]
    assert answered["9 unmap in one's own global capture, RELAXED"]["values"]["the memset was run"]


def test_graphs_whose_pages_change(answered):
    """The stand-in runs a graph's nodes on whatever is mapped there."""
    both = "bytes of the page and of the other"
    for when in ("instantiated", "launched"):
        seen = answered[f"9 memcpy from a page, remapped before it is {when}"]["values"]
        assert seen["launch"] == "0 CUDA_SUCCESS"
        assert seen[both] == [5, 5]
        assert answered[f"9 memcpy to a page, remapped before it is {when}"]["values"][both] == [1, 1]
        assert answered[f"9 memset of a page, remapped before it is {when}"]["values"][both][0] == 7


def test_memsets_and_copies_of_unmapped_addresses(answered):
    said = {name: item["values"].get("answer") for name, item in answered.items() if name[0] == "8"}
    assert said["8 cuMemsetD8, of a reservation, unmapped"].startswith("1 CUDA_ERROR_INVALID_VALUE")


def test_a_question_that_ends_the_context_has_a_fresh_process_after_it(tmp_path, monkeypatch):
    """What it said before is kept; what it raised is an answer."""
    (tmp_path / "made_questions.py").write_text(
        """
import os
from benchmarks.gpu import questions
class Gone:
    def __init__(self, cuda):
        self.cuda = self
    def cuCtxSynchronize(self):
        return 700
def kills(b):
    yield "pid", os.getpid()
    raise RuntimeError("an illegal memory access")
def items():
    questions.Bench, questions.Cuda = Gone, lambda library: None
    questions.ctypes.CDLL = lambda name: None
    return {name: (lambda: questions.answers(kills)) for name in "ab"}
import benchmarks.gpu.probe_what
benchmarks.gpu.probe_what.named = lambda cuda, code: f"{code} ILLEGAL_ADDRESS"
"""
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr(crew_module, "BUILD", tmp_path / "build")
    items = {}
    Crew("made_questions", each_s=20, built=False).run(Deadline(60), items)
    first, second = items["a"], items["b"]
    assert first["status"] == second["status"] == "ok"
    assert first["values"]["the context then"] == "700 ILLEGAL_ADDRESS"
    assert first["values"]["not answered"] == "RuntimeError: an illegal memory access"
    assert first["values"]["pid"] != second["values"]["pid"]
