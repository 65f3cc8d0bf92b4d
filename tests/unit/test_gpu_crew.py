"""The GPU script's workers: whatever an item does, crash, hang or fail, the others run."""

import time
from pathlib import Path

import pytest

from benchmarks.gpu import crew as crew_module
from benchmarks.gpu.clock import Deadline
from benchmarks.gpu.crew import Crew


def run(crew, seconds, changed=lambda: None):
    items = {}
    crew.run(Deadline(seconds), items, changed)
    return items


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
    items = run(Crew(module, each_s=3), 60)
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
    items = run(Crew(module, each_s=0.5, separate=True), 60)
    assert len(items) == 8
    assert items["fine"]["result"]["pid"] != items["partly"]["values"]["pid"]


def test_one_item_only(module):
    items = run(Crew(module, each_s=5, only="partly"), 60)
    assert list(items) == ["partly"]
    assert items["partly"]["status"] == "ok"


def test_what_the_time_does_not_suffice_for_is_cut_short(module, tmp_path):
    (tmp_path / "made_items.py").write_text(
        "import time\ndef items(): return dict.fromkeys('abc', lambda: time.sleep(60))"
    )
    items = run(Crew(module, each_s=50), 3)
    assert {name: item["status"] for name, item in items.items()} == dict.fromkeys("abc", "cut short")


def test_a_process_that_ends_badly(module, tmp_path):
    (tmp_path / "made_items.py").write_text(
        "import atexit, os\natexit.register(os._exit, 3)\ndef items(): return {'a': int, 'b': int}"
    )
    items = run(Crew(module, each_s=20), 60)
    assert items["a"]["status"] == items["b"]["status"] == "ok"
    assert (items["exit after b"]["status"], items["exit after b"]["error"]) == (
        "died",
        "died (exit 3)",
    )


def test_a_module_that_cannot_be_imported_is_an_error(module):
    items = run(Crew("no_such_module", each_s=20), 20)
    assert items["starting"]["status"] == "died"
    assert "No module named 'no_such_module'" in items["starting"]["said"]


def test_the_gpu_tests_are_tried_on_the_cpu():
    """So that what they say is known to be sayable."""
    crew = Crew("benchmarks.gpu.gpu_test_items", 60, built=False, environment={"VMM_GPU_TESTS_ON": "cpu"})
    items = run(crew, 200)
    wrong = {name: item for name, item in items.items() if item["status"] not in ("ok", "skipped")}
    assert not wrong
    assert {item.get("error") for item in items.values() if item["status"] == "skipped"} == {
        "needs CUDA itself"
    }
    assert len(items) > 40


def made(tmp_path, text):
    (tmp_path / "made_items.py").write_text(text)


def test_garbage_ends_nothing(module, tmp_path):
    """On the pipe and on the standard output; a value that JSON has not; a line without an end."""
    made(
        tmp_path,
        """
import os, sys
def garbage():
    pipe = int(os.environ["VMM_GPU_PIPE"])
    for text in (b"\\xff\\x00{\\n", b"[1]\\n", b'{"name": "nobody", "begins": 1}\\n', b"{}\\n"):
        os.write(pipe, text)
    yield "value", {(1, 2): float("nan")}
    os.write(1, bytes(range(256)) * 1000)
    os.write(pipe, b"no end")
    os.kill(os.getpid(), 9)
def items(): return {"garbage": garbage, "after": int}
""",
    )
    items = run(Crew(module, each_s=20), 60)
    assert items["garbage"]["status"] == "died"
    assert "garbage" in items["garbage"]
    assert "(1, 2)" in items["garbage"]["values"]["value"]
    assert items["after"]["status"] == "ok"
    assert set(items) == {"garbage", "after"}


def test_what_never_stops_printing_is_stopped(module, tmp_path):
    made(
        tmp_path,
        """
import os
def prints():
    while True: os.write(1, b"x" * 65536)
def floods():
    while True: yield "key", "y" * 1000
def items(): return {"prints": prints, "floods": floods, "after": int}
""",
    )
    items = run(Crew(module, each_s=1), 60)
    statuses = {name: item["status"] for name, item in items.items()}
    assert statuses == {"prints": "timed out", "floods": "timed out", "after": "ok"}
    assert (tmp_path / "build/log/made_items.txt").stat().st_size < 2**23


def test_a_process_that_does_not_end(module, tmp_path):
    made(tmp_path, "import atexit, time\natexit.register(time.sleep, 60)\ndef items(): return {'a': int}")
    items = run(Crew(module, each_s=1), 60)
    assert {name: item["status"] for name, item in items.items()} == {"a": "ok", "exit after a": "timed out"}


def gone(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in "ZX"
    except OSError:
        return True


def test_nothing_that_an_item_started_outlives_it(module, tmp_path):
    made(
        tmp_path,
        "import subprocess\ndef items(): return {'a': lambda: subprocess.Popen(['sleep', '60']).pid}",
    )
    pid = run(Crew(module, each_s=20), 60)["a"]["result"]
    for _ in range(500):  # a signal takes its time on a busy machine
        if gone(pid):
            return
        time.sleep(0.01)
    raise AssertionError(f"{pid} still runs")


def test_a_device_that_is_gone(module, tmp_path):
    """After the first item no process gets as far as an item: all the others are named."""
    made(
        tmp_path,
        f"""
import os, pathlib
gone = pathlib.Path({str(tmp_path)!r}) / "gone"
if gone.exists(): raise RuntimeError("no device")
def breaks():
    gone.touch()
    os.abort()
def items(): return dict.fromkeys("abcdef", breaks)
""",
    )
    items = run(Crew(module, each_s=20), 60)
    assert {name: item["status"] for name, item in items.items()} == {
        **dict.fromkeys("abcd", "died"),
        **dict.fromkeys("ef", "cut short"),
    }
    assert "no device" in items["b"]["said"]
    assert items["f"]["error"] == "no process begins an item any more"


def test_every_change_is_told(module):
    told = []
    items = {}
    Crew(module, each_s=3, only="partly").run(Deadline(60), items, lambda: told.append(dict(items)))
    assert len(told) >= 3
    assert told[-1]["partly"]["status"] == "ok"
