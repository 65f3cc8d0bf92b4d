"""The GPU script: what it does with what its sections find, and its conformance section on the stand-in."""

import errno
import importlib.machinery
import json
import os
import sys
import types
from pathlib import Path

import pytest
import torch

from benchmarks.gpu import __main__ as script
from benchmarks.gpu import bench_items, clock
from benchmarks.gpu.clock import Deadline
from benchmarks.gpu.sections import Outcome, Section, sections
from benchmarks.gpu.table import rendered
from vmm.benchmarks import growth
from vmm.benchmarks.report import Report


def section(items, judge=lambda items: [], checks=True):
    class Fixed:
        def run(self, deadline, found, changed):
            found.update(items)
            changed()

    return Section("made", Fixed(), 10, judge, checks)


def test_outcomes():
    fine, short = {"status": "ok"}, {"status": "cut short", "error": "no time was left"}
    skipped, hung = {"status": "skipped", "error": "no GPU"}, {"status": "timed out", "error": "timed out"}

    def run(made, seconds):
        outcome = Outcome("made")
        made.run(Deadline(seconds), outcome)
        return outcome

    def status(items, **options):
        return run(section(items, **options), 10).status

    assert status({"a": fine}) == "passed"
    assert status({"a": fine}, checks=False) == "measured"
    assert status({"a": fine, "b": skipped}) == "passed"
    assert status({"a": skipped}) == "not run"
    assert status({"a": fine, "b": short}) == "cut short"
    assert status({"a": hung}, checks=False) == "cut short"
    assert status({"a": fine}, judge=lambda items: ["wrong"]) == "failed"
    late = run(section({"a": fine}), 0)
    assert (late.status, late.reason) == ("not run", "no time was left")


def judged(name, **items):
    [found] = [section for section in sections() if section.name == name]
    return found.judge(items)


def test_what_is_a_failure():
    hung = {"status": "timed out", "error": "timed out"}
    died = {"status": "died", "error": "died (exit -6)"}
    wrong = {"status": "error", "kind": "WrongData", "error": "WrongData: 1"}
    refused = {"status": "error", "kind": "AssertionError", "error": "CUresult 1"}
    skipped = {"status": "skipped", "error": "no GPU"}
    differs = {"call": "cuMemMap", "expected": [1, 2], "actual": 0}
    for checking in ("build", "conformance", "gpu tests"):
        assert len(judged(checking, a=hung, b=died, c=refused, d=skipped)) == 3
    steps = {"status": "ok", "result": {"differences": [differs], "stopped": "KeyError: 1"}}
    assert judged("conformance", a=steps) == [
        "a: cuMemMap: expected 1 or 2, got 0",
        "a: stopped: KeyError: 1",
    ]
    assert judged("probes", a=hung, b=died, c=refused, d=skipped) == []
    assert judged("probes", a=wrong) == ["a: WrongData: 1"]
    assert judged("attention", a=hung, b=skipped) == []
    assert len(judged("attention", a=died, b=refused)) == 2


@pytest.fixture
def one_gpu(monkeypatch):
    device = {"name": "NVIDIA Made-Up 80GB", "memory_bytes": 1}
    monkeypatch.setattr(script.machine, "cuda_devices", lambda: ([device], ""))


@pytest.mark.parametrize("failures", [[], ["cuMemMap: expected 1, got 0"]])
def test_results_are_written_and_tell_in_the_exit_code(failures, one_gpu, tmp_path, monkeypatch, capsys):
    items = {"x": {"status": "ok", "result": {"metrics": {"speed": 2.5, "speed_8b_b1_1k": 3.0}}}}
    chosen = [section(items, lambda items: failures)]
    monkeypatch.setattr(script, "sections", lambda build: chosen)
    monkeypatch.setenv("OUT", str(tmp_path))
    assert script.main([]) == len(failures)
    [written] = tmp_path.glob("gpu-made-up-80gb-*.json")
    results = json.loads(written.read_text())
    assert results["device"]["name"] == "NVIDIA Made-Up 80GB"
    assert results["correct"] == (not failures)
    assert results["sections"][0]["items"] == items
    assert {"commit", "driver", "python", "packages"} <= set(results["machine"])
    table = written.with_suffix(".md").read_text()
    assert "| speed | 2.5 |" in table
    assert "b1_1k" not in table  # one shape: the JSON has it
    assert all(failure in table for failure in failures)
    assert "| made |" in capsys.readouterr().out


def test_sections_share_the_time(one_gpu, tmp_path, monkeypatch):
    monkeypatch.setattr(script, "sections", lambda build: [section({}), section({})])
    assert script.main(["--seconds", "0", "--out", str(tmp_path)]) == 0
    results = json.loads(next(tmp_path.glob("*.json")).read_text())
    assert [each["reason"] for each in results["sections"]] == ["no time was left"] * 2


def test_what_stands_on_a_failed_section_is_not_run(one_gpu, tmp_path, monkeypatch):
    built, bench = section({"x": {"status": "ok"}}, lambda items: ["no compiler"]), section({})
    bench.name, bench.stands_on = "bench", "made"
    monkeypatch.setattr(script, "sections", lambda build: [built, bench])
    assert script.main(["--out", str(tmp_path)]) == 1
    results = json.loads(next(tmp_path.glob("*.json")).read_text())
    assert [(each["status"], each["reason"]) for each in results["sections"]] == [
        ("failed", ""),
        ("not run", "made failed"),
    ]


def test_the_commit_may_come_from_the_environment(monkeypatch):
    monkeypatch.setattr(script.machine, "_output", lambda *command: None)
    monkeypatch.setenv("VMM_COMMIT", "abc123")
    assert script.machine.description()["commit"] == "abc123"


def test_a_table_of_everything():
    outcome = Outcome(
        "probes", "measured", items={"p": {"status": "died", "error": "exit | 1", "values": {}}}
    )
    for at in range(30):
        outcome.items["p"]["values"][f"key{at}"] = {"p50_us": 1.23456, "n": at}
    results = {
        "device": {"name": "d"}, "started": "now", "seconds": 1, "seconds_allowed": 2, "correct": True,
        "machine": {"commit": "c", "driver": None, "python": "3", "packages": {"torch": "2"}},
        "sections": [vars(outcome)],
    }  # fmt: skip
    assert "| p: key29 | p50_us 1.235, n 29 |" in rendered(results)
    assert "key29" not in rendered(results, complete=False)
    assert "exit / 1" in rendered(results)


@pytest.fixture
def made_bench(monkeypatch):
    """A benchmark that runs on what its DEVICES say."""
    name = "vmm.benchmarks.made"
    made = types.ModuleType(name)
    made.__spec__ = importlib.machinery.ModuleSpec(name, None)
    made.DEVICES = ("cpu", "cuda")
    made.run = lambda progress, device: Report("made", device, {"speed": 2.0})
    monkeypatch.setitem(sys.modules, name, made)
    return made


def test_benchmarks(made_bench, monkeypatch):
    assert bench_items.measured("made")["metrics"] == {"speed": 2.0}
    assert bench_items.measured("made")["device"] == "cuda"
    made_bench.ENVIRONMENT = {"NEEDED_BEFORE": "1"}
    started = []
    monkeypatch.setattr(os, "execve", lambda *arguments: started.append(arguments))
    bench_items.measured("made")
    [(program, command, environment)] = started
    assert (program, command[:4]) == (sys.executable, [program, "-P", "-m", "benchmarks.gpu.worker"])
    assert environment["NEEDED_BEFORE"] == "1"


def test_benchmarks_that_are_not_there_or_know_no_gpu(made_bench):
    made_bench.DEVICES = ("cpu",)
    for name, words in (("nonsense", "no benchmark"), ("made", "knows only cpu")):
        with pytest.raises(bench_items.SkipTest, match=words):
            bench_items.measured(name)
    assert set(bench_items.items()) == {"attention", "map", "growth"}


def test_a_disk_that_is_full_ends_nothing(one_gpu, tmp_path, monkeypatch, capsys):
    def full(*arguments, **options):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(script, "sections", lambda build: [section({"x": {"status": "ok"}})])
    monkeypatch.setattr(Path, "write_text", full)
    assert script.main(["--out", str(tmp_path)]) == 0
    said = capsys.readouterr()
    assert "No space left" in said.err
    assert "| made | passed |" in said.out


def test_a_mistake_in_one_section_is_a_line(one_gpu, tmp_path, monkeypatch):
    def mistaken(items):
        raise NameError("judge")

    chosen = [section({"x": {"status": "ok"}}, mistaken), section({"x": {"status": "ok"}})]
    monkeypatch.setattr(script, "sections", lambda build: chosen)
    assert script.main(["--out", str(tmp_path)]) == 1
    results = json.loads(next(tmp_path.glob("*.json")).read_text())
    assert [each["status"] for each in results["sections"]] == ["failed", "passed"]
    assert results["complete"]


def test_time_is_kept_for_what_comes_later(one_gpu, tmp_path, monkeypatch):
    allowed = []

    class Asks:
        def run(self, deadline, found, changed):
            allowed.append(deadline.left)

    chosen = [Section(name, Asks(), 100, lambda items: [], least_s=40) for name in "abc"]
    monkeypatch.setattr(script, "sections", lambda build: chosen)
    script.main(["--out", str(tmp_path), "--seconds", "150"])
    assert [round(each, -1) for each in allowed] == [70, 100, 100]


def test_in_the_worst_case_every_section_has_what_is_kept_for_it(one_gpu, tmp_path, monkeypatch):
    """Each takes all the time that it may."""
    now, allowed = 0.0, {}
    monkeypatch.setattr(clock, "monotonic", lambda: now)

    class TakesAll:
        def __init__(self, name):
            self.name = name

        def run(self, deadline, found, changed):
            nonlocal now
            allowed[self.name] = deadline.left
            now += deadline.left
            found["x"] = {"status": "ok"}

    chosen = sections()
    for each in chosen:
        each.crew, each.judge = TakesAll(each.name), lambda items: []
    monkeypatch.setattr(script, "sections", lambda build: chosen)
    script.main(["--out", str(tmp_path)])
    assert list(allowed) == [each.name for each in chosen]
    assert min(allowed.values()) >= 20
    assert allowed["probes"] >= 40
    assert all(allowed[each.name] >= each.least_s for each in chosen)


def test_one_section_brings_what_it_stands_on():
    chosen = sections()
    assert script._with_needs(["growth"], chosen) == {"build", "growth"}
    order = [each.name for each in chosen]
    assert order.index("map") < order.index("attention")
    assert sum(each.least_s for each in chosen) < script.SECONDS
    assert script.SECONDS + script._GRACE_S < 540


def test_programs_that_hang_or_are_not_there():
    assert script.machine.bounded([sys.executable, "-c", "import time; time.sleep(60)"], 0.2) is None
    assert script.machine.bounded(["/no/such/program"], 5) is None
    assert script.machine.bounded([sys.executable, "-c", "print(7)"], 30).stdout == "7\n"


def test_a_benchmark_is_told_how_long_it_may_take(made_bench, monkeypatch):
    monkeypatch.setenv("VMM_GPU_SECONDS", "85")
    told = []
    made_bench.run = lambda progress, device, seconds=7.0: (
        told.append(seconds) or Report("made", device, {"speed": 2.0})
    )
    bench_items.measured("made")
    monkeypatch.setenv("VMM_GPU_SECONDS", "3")
    bench_items.measured("made")
    assert told == [60.0, 1.0]
    assert not torch.backends.cuda.cudnn_sdp_enabled()


def test_growth_that_has_no_time_says_so():
    report = growth.run(lambda stage: None, "cpu", seconds=-1.0)
    assert "tokens" in report.environment["skipped"]
    assert report.metrics == {}
