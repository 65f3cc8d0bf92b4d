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
from vmm.doctor import cuda, machine, software, verify_installation

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
    finding = machine.mappings(facts := {})
    assert (finding.status, facts["mappings_used"], facts["max_map_count"]) == (status, used, 64_000)
    assert (finding.advice is None) == (status == "ok")
    if finding.advice:
        assert int(finding.advice.removeprefix("sysctl -w vm.max_map_count=")) > 2 * used


def test_no_limits_are_no_complaints(monkeypatch):
    monkeypatch.setattr(machine.resource, "getrlimit", lambda _: (resource.RLIM_INFINITY,) * 2)
    facts = {"driver": "host"}
    for check in (machine.locked_memory, machine.file_size, machine.address_space):
        assert check(facts) == ("ok", "unlimited", None)
    assert facts["memlock_limit_bytes"] is None


# libcuda. A library of that name says what FAKE_CUDA tells it to.

FAKE = r"""
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
static int is(const char* what) { const char* say = getenv("FAKE_CUDA"); return say && !strcmp(say, what); }
int cuDriverGetVersion(int* version) { *version = 13020; return 0; }
int cuInit(unsigned flags) {
  (void)flags;
  puts("{chatter of a driver"); fflush(stdout);
  if (is("hang")) sleep(600);
  if (is("crash")) abort();
  if (is("exit")) _exit(0);
  return is("refuse") ? 100 : 0;
}
int cuGetErrorName(int code, const char** name) { *name = "CUDA_ERROR_NO_DEVICE"; return code != 100; }
int cuDeviceGetCount(int* count) { *count = is("empty") ? 0 : 1; return 0; }
int cuDeviceGet(int* device, int number) { *device = number + 7; return 0; }
int cuDeviceGetName(char* name, int length, int device) {
  snprintf(name, length, "Fake GPU %d", device);
  return is("nameless") ? 999 : 0;
}
int cuDeviceTotalMem_v2(size_t* size, int device) { (void)device; *size = (size_t)80 << 30; return 0; }
"""


@pytest.fixture(scope="module")
def compile_libcuda(tmp_path_factory):
    def compile_it(source):
        folder = tmp_path_factory.mktemp("libcuda")
        (folder / "fake.c").write_text(source)
        command = [os.environ.get("CC", "cc"), "-shared", "-fPIC", "fake.c", "-o", "libcuda.so.1"]
        subprocess.run(command, cwd=folder, check=True, timeout=60)
        return folder

    return compile_it


@pytest.fixture(scope="module")
def fake_folder(compile_libcuda):
    return compile_libcuda(FAKE)


@pytest.fixture
def fake(fake_folder, monkeypatch):
    """Tells the fake what to do and answers what the check makes of it: (finding, facts)."""

    def check(behaviour):
        monkeypatch.setenv("LD_LIBRARY_PATH", str(fake_folder))
        monkeypatch.setenv("FAKE_CUDA", behaviour)
        facts = {}
        return cuda.libcuda(facts), facts["cuda"]

    return check


def test_a_gpu_is_described_and_not_claimed_to_be_used(fake, fake_folder):
    finding, said = fake("one device")
    assert finding.status == "ok"
    assert "Fake GPU 7 (80.0 GiB)" in finding.found
    assert "CUDA 13.2" in finding.found
    assert "not used yet" in finding.found
    assert said["devices"] == [{"name": "Fake GPU 7", "memory_bytes": 80 * 2**30}]
    assert said["library"] == str(fake_folder / "libcuda.so.1")
    report = verify_installation()
    assert report.driver == "host"
    assert "1 GPU(s) not used yet" in report.summary
    assert str(fake_folder) not in Path("/proc/self/maps").read_text()  # only ever in a process of its own


@pytest.mark.parametrize(
    ("behaviour", "words"),
    [
        ("refuse", "cuInit failed: CUDA_ERROR_NO_DEVICE"),
        ("empty", "no device"),
        ("nameless", "cuDeviceGetName failed: error 999"),
        ("crash", "crashed with SIGABRT in cuInit"),
        ("exit", "ended with code 0 in cuInit"),
    ],
)
def test_a_libcuda_in_trouble_is_a_warning(fake, behaviour, words):
    finding, said = fake(behaviour)
    assert finding.status == "warning"
    assert words in finding.found
    assert "nvidia-smi" in finding.advice
    assert said["version"] == 13020  # what was known before the trouble is kept


def test_hidden_devices_are_mentioned(fake, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert "CUDA_VISIBLE_DEVICES=''" in fake("refuse")[0].found


def test_a_libcuda_that_hangs_is_given_up(fake, monkeypatch):
    monkeypatch.setattr(cuda, "_SECONDS", 2.5)
    finding, said = fake("hang")
    assert finding.status == "warning"
    assert "no answer in 2.5 s in cuInit" in finding.found
    assert said["version"] == 13020


def test_a_libcuda_without_its_functions(compile_libcuda, monkeypatch):
    monkeypatch.setenv("LD_LIBRARY_PATH", str(compile_libcuda("int nothing;")))
    finding = cuda.libcuda({})
    assert finding.status == "warning"
    assert "cuDriverGetVersion" in finding.found


def test_no_libcuda_is_fine(monkeypatch, tmp_path):
    monkeypatch.setattr(cuda, "_LIBRARY", "libcuda-absent.so.1")
    monkeypatch.setattr(cuda, "_DEVICE_FILES", (str(tmp_path / "absent"),))
    finding = cuda.libcuda(facts := {})
    assert (finding.status, finding.advice) == ("ok", None)
    assert "libcuda-absent.so.1: cannot open shared object file" in facts["cuda"]["load_error"]
    (tmp_path / "absent").touch()
    finding = cuda.libcuda({})
    assert finding.status == "warning"
    assert "--gpus all" in finding.advice


def test_a_damaged_libcuda_is_not_fine(monkeypatch, tmp_path):
    (tmp_path / "libcuda.so.1").write_bytes(b"not a library" * 100)
    monkeypatch.setenv("LD_LIBRARY_PATH", str(tmp_path))
    finding = cuda.libcuda({})
    assert finding.status == "warning"
    assert "invalid ELF header" in finding.found


# What is installed.


@pytest.fixture
def install(tmp_path, monkeypatch):
    """Makes a distribution that hides the installed one of its name."""
    monkeypatch.syspath_prepend(str(tmp_path))

    def make(name, version, *lines):
        folder = tmp_path / f"{name}-{version}.dist-info"
        folder.mkdir()
        head = ("Metadata-Version: 2.1", f"Name: {name}", f"Version: {version}")
        (folder / "METADATA").write_text("\n".join([*head, *lines, ""]))
        return tmp_path

    return make


def test_a_torch_that_is_too_old(install):
    install("kvmm", "0.1.0", 'Requires-Dist: torch>=2.11; extra == "torch"')
    root = install("torch", "2.1.0")
    (root / "torch").mkdir()
    (root / "torch" / "version.py").write_text("cuda: Optional[str] = '12.1'\nhip: Optional[str] = None\n")
    finding = software.torch(facts := {})
    assert finding.status == "warning"
    assert "2.1.0, not a supported version (>=2.11)" in finding.found
    assert "built for CUDA 12.1" in finding.found
    assert finding.advice == "pip install 'torch>=2.11'"
    assert facts["torch"] == {"version": "2.1.0", "supported": ">=2.11", "in_range": False, "cuda": "12.1"}


def test_the_range_is_the_installed_vmm_s_own(install):
    install("torch", "3.5")
    install("kvmm", "0.1.0", 'Requires-Dist: torch>=3,!=3.4; extra == "torch"')
    assert software.torch({}).found.startswith("3.5 (supported: >=3,!=3.4), of an unknown build")


def test_another_vmm_installed_than_running(install):
    install("kvmm", "9.9")
    assert software.vmm_itself({}).status == "warning"


def test_missing_packages_are_told_apart(monkeypatch):
    installed = software._installed
    monkeypatch.setattr(software, "_installed", lambda name: None if name == "torch" else installed(name))
    finding = software.torch(facts := {})
    advice = f"pip install 'torch{software._supported('torch')}'"
    assert finding == ("warning", "not installed; not needed by vmm.Pool", advice)
    assert facts["torch"]["version"] is None
    monkeypatch.setattr(software, "_installed", lambda name: None if name == "kvmm" else installed(name))
    assert "not declared" in software.transformers({}).found
    assert software.vmm_itself({}).status == "warning"


@pytest.mark.parametrize(
    ("version", "supported", "fits"),
    [
        ("2.11", ">=2.11", True),
        ("2.11.0+cpu", ">=2.11", True),
        ("2.9.1", ">=2.11", False),
        ("2.12.0a0+git1234", ">=2.11", True),
        ("5.17.0", ">=5.17,<6", True),
        ("6.0.0.dev0", ">=5.17,<6", False),
        ("6", ">=5.17,<6", False),
        ("10.0", ">9.9,!=10", False),
    ],
)
def test_version_ranges(version, supported, fits):
    assert software.in_range(version, supported) is fits


def test_an_unknown_clause_is_not_guessed_at():
    with pytest.raises(ValueError, match="~="):
        software.in_range("1.0", "~=1.0")
