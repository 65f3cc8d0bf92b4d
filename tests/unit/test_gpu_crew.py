"""The GPU script's workers: whatever an item does, crash, hang or fail, the others run."""

import pytest

from benchmarks.gpu import crew as crew_module
from benchmarks.gpu.clock import Deadline
from benchmarks.gpu.crew import Crew

ITEMS = """
import os, signal, time
from unittest import SkipTest

def partly():
    yield "first", 1
    yield "pid", os.getpid()

def partly_then_dies():
    yield "before", [1, 2]
    print("last words", flush=True)
    os.kill(os.getpid(), signal.SIGSEGV)

def skips():
    raise SkipTest("not here")

def fails():
    raise AssertionError("wrong by 1")

def items():
    return {
        "fine": lambda: {"pid": os.getpid()},
        "partly": partly,
        "dirty": lambda: {"pid": os.getpid(), "dirty": True},
        "dies": partly_then_dies,
        "skips": skips,
        "fails": fails,
        "hangs": lambda: time.sleep(60),
        "last": lambda: {"pid": os.getpid()},
    }
"""


@pytest.fixture
def module(tmp_path, monkeypatch):
    """A module of items, and the crew's folder elsewhere."""
    (tmp_path / "made_items.py").write_text(ITEMS)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr(crew_module, "BUILD", tmp_path / "build")
    return "made_items"


def test_whatever_an_item_does_the_others_run(module):
    items = Crew(module, each_s=3).run(Deadline(60))
    assert {name: item["status"] for name, item in items.items()} == {
        "fine": "ok",
        "partly": "ok",
        "dirty": "ok",
        "dies": "died",
        "skips": "skipped",
        "fails": "error",
        "hangs": "timed out",
        "last": "ok",
    }
    assert items["dies"]["values"] == {"before": [1, 2]}
    assert "exit -11" in items["dies"]["error"]
    assert "last words" in items["dies"]["said"]
    assert (items["fails"]["kind"], items["fails"]["error"]) == (
        "AssertionError",
        "AssertionError: wrong by 1",
    )
    assert "in fails" in items["fails"]["trace"]
    assert items["skips"]["error"] == "not here"
    # One process until one is dirty.
    first, after = items["fine"]["result"]["pid"], items["last"]["result"]["pid"]
    assert items["partly"]["values"] == {"first": 1, "pid": first}
    assert items["dirty"]["result"]["pid"] == first != after


def test_separate_items_have_processes_of_their_own(module):
    items = Crew(module, each_s=0.5, separate=True).run(Deadline(60))
    assert len(items) == 8
    assert items["fine"]["result"]["pid"] != items["partly"]["values"]["pid"]


def test_one_item_only(module):
    items = Crew(module, each_s=5, only="partly").run(Deadline(60))
    assert list(items) == ["partly"]
    assert items["partly"]["status"] == "ok"


def test_what_the_time_does_not_suffice_for_is_cut_short(module, tmp_path):
    (tmp_path / "made_items.py").write_text(
        "import time\ndef items(): return dict.fromkeys('abc', lambda: time.sleep(60))"
    )
    items = Crew(module, each_s=50).run(Deadline(3))
    assert {name: item["status"] for name, item in items.items()} == dict.fromkeys("abc", "cut short")


def test_a_process_that_ends_badly(module, tmp_path):
    (tmp_path / "made_items.py").write_text(
        "import atexit, os\natexit.register(os._exit, 3)\ndef items(): return {'a': int, 'b': int}"
    )
    items = Crew(module, each_s=20).run(Deadline(60))
    assert items["a"]["status"] == items["b"]["status"] == "ok"
    assert (items["exit after b"]["status"], items["exit after b"]["error"]) == ("died", "exit 3")


def test_a_module_that_cannot_be_imported_is_an_error(module):
    items = Crew("no_such_module", each_s=20).run(Deadline(20))
    assert items["starting"]["status"] == "died"
    assert "No module named 'no_such_module'" in items["starting"]["said"]


def test_the_gpu_tests_are_tried_on_the_cpu():
    """So that what they say is known to be sayable."""
    crew = Crew("benchmarks.gpu.gpu_test_items", 60, built=False, environment={"VMM_GPU_TESTS_ON": "cpu"})
    items = crew.run(Deadline(200))
    wrong = {name: item for name, item in items.items() if item["status"] not in ("ok", "skipped")}
    assert not wrong
    assert {item.get("error") for item in items.values() if item["status"] == "skipped"} == {
        "needs CUDA itself"
    }
    assert len(items) > 40
