"""``vmm doctor`` and ``verify_installation``: what they find, and that trouble is found."""

import dataclasses
import json
import os
import resource
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from typer.testing import CliRunner

import vmm
import vmm.doctor
from child import run_child
from vmm import cli
from vmm.doctor import machine, verify_installation

NAMES = [name for name, _ in vmm.doctor._CHECKS]


def line(report, name):
    [check] = [check for check in report.checks if check.name == name]
    return check


def doctor_under(limits, **environment):
    """``vmm doctor --json`` in a process with these ulimits: (exit code, its JSON)."""
    result = subprocess.run(
        ["sh", "-c", f'{limits}; exec "$0" -m vmm doctor --json', sys.executable],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert result.stderr == ""
    return result.returncode, json.loads(result.stdout)


def status_of(answer):
    return {check["name"]: check["status"] for check in answer["checks"]}


def test_it_tells_the_truth_about_this_process(monkeypatch):
    monkeypatch.setenv("VMM_BUDGET", "3MiB")
    report = verify_installation()
    assert report.usable
    assert report.driver == "host"
    assert [check.name for check in report.checks] == NAMES
    facts = report.facts
    assert facts["granularity_bytes"] == resource.getpagesize()
    with vmm.Pool() as pool:
        assert facts["default_page_bytes"] == pool.default_page_bytes
        assert facts["budget_bytes"] == pool.budget_bytes == 3 * 2**20
    assert facts["max_map_count"] == int(Path("/proc/sys/vm/max_map_count").read_text())
    assert 0 < facts["mappings_used"] < facts["max_map_count"]
    assert 0 < facts["memory_available_bytes"] <= facts["memory_total_bytes"]
    assert facts["vmm"]["version"] == vmm.__version__
    assert facts["python"]["in_range"]
    assert facts["torch"]["supported"] is not None  # pyproject.toml declares both ranges
    assert facts["transformers"]["supported"] is not None
    assert "host driver" in report.summary
    assert "3.0 MiB" in report.summary
    with pytest.raises(dataclasses.FrozenInstanceError):
        report.driver = None


def test_it_leaves_nothing_behind_and_imports_no_torch():
    result = run_child("""
        import os, sys
        from vmm.doctor import verify_installation
        def held():
            maps = open("/proc/self/maps").read()
            return len(os.listdir("/proc/self/fd")), len(os.listdir("/proc/self/task")), maps.count("vmm")
        verify_installation()
        before = held()
        for _ in range(3):
            assert verify_installation().usable
        print(before == held(), "torch" in sys.modules, "transformers" in sys.modules)
    """)
    assert result.stdout == "True False False\n", result.stderr


def test_it_works_from_many_threads_at_once():
    reports = []
    threads = [threading.Thread(target=lambda: reports.append(verify_installation())) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [report.usable for report in reports] == [True] * 4
    assert not [c for report in reports for c in report.checks if c.found.startswith("could not")]


def test_the_command_says_the_same_as_python():
    plain, as_json = (CliRunner().invoke(cli.app, ["doctor", *flag]) for flag in ([], ["--json"]))
    assert (plain.exit_code, as_json.exit_code) == (0, 0)
    answer = json.loads(as_json.stdout)
    report = verify_installation()
    assert answer["usable"] is True
    assert answer["driver"] == "host"
    assert [(c["name"], c["status"], c["advice"]) for c in answer["checks"]] == [
        (c.name, c.status, c.advice) for c in report.checks
    ]
    assert answer["facts"].keys() == report.facts.keys()
    assert json.loads(report.to_json())["facts"] == report.facts
    lines = plain.stdout.splitlines()
    assert lines[-1].startswith("vmm will use the host driver on the CPU")
    for check in report.checks:
        assert [text for text in lines if text.startswith(check.name) and check.status in text], check.name


def test_a_file_size_limit_stops_everything_and_is_named():
    code, answer = doctor_under("ulimit -f 1000; ulimit -l 64")
    assert code == 1
    assert (answer["usable"], answer["driver"]) == (False, None)
    status = status_of(answer)
    assert [status[name] for name in ("host driver", "file size", "budget")] == ["error"] * 3
    assert status["memlock"] == "warning"
    assert answer["facts"]["memlock_limit_bytes"] == 64 * 1024
    assert "Nothing can work" in answer["summary"]
    assert "ulimit -f unlimited" in answer["summary"]


def test_too_little_address_space_for_a_pool_stops_everything():
    code, answer = doctor_under("ulimit -v 900000")
    assert code == 1
    assert "ulimit -v unlimited" in answer["summary"]


def test_a_bad_budget_or_a_smaller_arena_does_not():
    code, answer = doctor_under("ulimit -v 8000000", VMM_BUDGET="nonsense")
    assert code == 0
    status = status_of(answer)
    assert status["address space"] == "warning"
    assert status["host driver"] == "ok"
    [budget] = [check for check in answer["checks"] if check["name"] == "budget"]
    assert budget["status"] == "error"
    assert "VMM_BUDGET" in budget["found"]
    assert "'nonsense'" in budget["found"]
    assert "unset VMM_BUDGET" in answer["summary"]
    assert answer["facts"]["budget_bytes"] is None


def test_memory_that_forgets_is_noticed(monkeypatch):
    monkeypatch.setattr(machine.ctypes, "memset", lambda *_: None)
    report = verify_installation()
    assert not report.usable
    assert "did not keep" in line(report, "host driver").found
    assert "vmm-doctor" not in Path("/proc/self/maps").read_text()


def test_a_check_that_fails_is_a_line(monkeypatch):
    def broken(facts):
        raise OSError("no such luck")

    monkeypatch.setattr(vmm.doctor, "_CHECKS", (*vmm.doctor._CHECKS, ("extra", broken)))
    report = verify_installation()
    assert report.usable
    assert line(report, "extra").status == "error"
    assert "no such luck" in line(report, "extra").found
    assert "extra" in report.summary


@pytest.mark.parametrize(("used", "status"), [(32_000, "ok"), (32_001, "warning")])
def test_more_than_half_of_the_mappings(monkeypatch, used, status):
    files = {"/proc/sys/vm/max_map_count": "64000\n", "/proc/self/maps": "mapping\n" * used}
    monkeypatch.setattr(machine, "_read", files.__getitem__)
    monkeypatch.setattr(machine._core, "mapping_limit", lambda: (64_000, "vm.max_map_count (sysctl)"))
    finding = machine.mappings(facts := {})
    assert (finding.status, facts["mappings_used"], facts["max_map_count"]) == (status, used, 64_000)
    assert (finding.advice is None) == (status == "ok")
    if finding.advice:
        assert int(finding.advice.removeprefix("sysctl -w vm.max_map_count=")) > 2 * used


def doctor_says(limit):
    done = run_child(
        "import vmm; print(vmm.verify_installation().to_json())",
        environment={**os.environ, "VMM_MAX_MAPPINGS": limit},
    )
    found = json.loads(done.stdout)
    return found, {check["name"]: check for check in found["checks"]}


def test_mappings_that_a_variable_limits():
    found, checks = doctor_says("1500")
    assert found["facts"]["mappings_limit"] == 1500
    assert "of 1,500 used (VMM_MAX_MAPPINGS)" in checks["mappings"]["found"]
    found, checks = doctor_says("100")
    assert (checks["mappings"]["status"], checks["mappings"]["advice"]) == (
        "warning",
        "unset VMM_MAX_MAPPINGS",
    )


def test_a_variable_that_is_no_number_of_mappings():
    found, checks = doctor_says("12GiB")
    assert not found["usable"]
    assert checks["mappings"]["status"] == "error"
    assert "VMM_MAX_MAPPINGS is '12GiB'; expected a whole number" in checks["mappings"]["found"]
    assert "VMM_MAX_MAPPINGS" in checks["mappings"]["advice"]
    assert "VMM_BUDGET" not in str(checks["budget"]["advice"])


def test_no_limits_are_no_complaints(monkeypatch):
    monkeypatch.setattr(machine.resource, "getrlimit", lambda _: (resource.RLIM_INFINITY,) * 2)
    facts = {"driver": "host"}
    for check in (machine.locked_memory, machine.file_size, machine.address_space):
        assert check(facts) == ("ok", "unlimited", None)
    assert facts["memlock_limit_bytes"] is None
