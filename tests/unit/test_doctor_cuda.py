"""What ``vmm doctor`` says of libcuda. A library of that name says what FAKE_CUDA tells it to."""

import os
import subprocess
from pathlib import Path

import cuda_standin
import pytest

from child import run_child
from vmm.doctor import cuda, verify_installation

FAKE = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
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

# What cuda-bindings needs besides: how it finds functions, and a device without virtual memory management
# (attribute 102) whose driver does not know of memory on the host (141, 144).
ATTRIBUTES = r"""
int cuDeviceGetAttribute(int* value, int attribute, int device) {
  if (is("crash late")) abort();
  if (is("exit late")) _exit(0);
  *value = attribute == 75 ? 3 : 0;
  return attribute > 134;
}
int cuGetProcAddress_v2(const char* name, void** address) {  /* called with three more arguments */
  *address = dlsym(dlopen("libcuda.so.1", RTLD_NOW | RTLD_NOLOAD), name);
  return 0;
}
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
def no_bindings(monkeypatch):
    monkeypatch.setattr(cuda, "_bindings_folder", lambda: None)


@pytest.fixture
def checked(monkeypatch):
    """Tells the libcuda of a folder what to do and answers what the check makes of it: (finding, facts)."""

    def check(folder, behaviour=""):
        monkeypatch.setenv("LD_LIBRARY_PATH", str(folder))
        monkeypatch.setenv("FAKE_CUDA", behaviour)
        facts = {}
        return cuda.libcuda(facts), facts["cuda"]

    return check


@pytest.fixture
def fake(fake_folder, checked, no_bindings):
    return lambda behaviour: checked(fake_folder, behaviour)


@pytest.fixture(scope="module")
def with_attributes(compile_libcuda):
    pytest.importorskip("cuda.bindings", exc_type=ImportError)
    return compile_libcuda(FAKE + ATTRIBUTES)


def test_a_gpu_is_described_and_not_claimed_to_be_used(fake, fake_folder):
    finding, said = fake("one device")
    assert finding.status == "ok"
    assert "Fake GPU 7 (80.0 GiB)" in finding.found
    assert "CUDA 13.2" in finding.found
    assert "not used yet" in finding.found
    assert "not yet measured on a GPU" in finding.found
    assert finding.found.endswith("; pip install 'kvmm[cuda]' to see attributes")
    assert finding.advice is None
    assert said["devices"] == [{"name": "Fake GPU 7", "memory_bytes": 80 * 2**30, "peers": []}]
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


def test_attributes_are_read_through_cuda_bindings(checked):
    version = pytest.importorskip("cuda.bindings", exc_type=ImportError).__version__
    finding, said = checked(Path(cuda_standin.library()).parent)
    assert finding.status == "ok"
    words = "1.0 GiB, compute capability 9.0, pages of 2.0 MiB and more"
    special = "RDMA, shareable by file descriptor"
    for peer in ("cuda:0", "cuda:1"):
        assert f"vmm stand-in ({words}, peers {peer}, {special})" in finding.found
    assert "pip install" not in finding.found
    assert (said["version"], said["bindings"], said["bindings_error"]) == (13000, version, None)
    first, second = said["devices"]
    assert (first.pop("peers"), second.pop("peers")) == ([1], [0])
    assert first == second
    assert first == {
        "name": "vmm stand-in",
        "memory_bytes": 2**30,
        "compute_capability": "9.0",
        "virtual_memory": True,
        "posix_fd_handles": True,
        "gpu_direct_rdma": True,
        "fabric_handles": False,
        "host_virtual_memory": True,
        "host_numa_virtual_memory": True,
        "host_numa_id": 0,
        "granularity_bytes": 2**21,
        "recommended_granularity_bytes": 2**21,
    }


def test_a_gpu_that_others_cannot_reach(checked, monkeypatch):
    """Device 1 cannot reach device 0: 0 can be had for a peer by a pool on 1, not the other way."""
    monkeypatch.setenv("VMM_STANDIN_NO_PEER", str(1 * 16 + 0))
    _, said = checked(Path(cuda_standin.library()).parent)
    assert [device["peers"] for device in said["devices"]] == [[], [0]]


def test_wsl2_is_told(fake, monkeypatch):
    assert "WSL2" not in fake("one device")[0].found
    monkeypatch.setattr(cuda, "on_wsl2", lambda: True)
    assert "WSL2: arenas are twice the budget, and RDMA may be" in fake("one device")[0].found


def test_a_gpu_without_virtual_memory_is_a_warning(with_attributes, checked):
    finding, said = checked(with_attributes)
    assert finding.status == "warning"
    assert "no virtual memory management on Fake GPU 7" in finding.found
    assert "vmm cannot use such a GPU" in finding.advice
    [device] = said["devices"]
    assert device["compute_capability"] == "3.0"
    assert device["virtual_memory"] is False
    assert device["host_numa_virtual_memory"] is None  # the driver does not know the question
    assert device["granularity_bytes"] is None


def test_a_gpu_before_ampere_is_a_warning():
    new, old = ({"name": name, "memory_bytes": 2**30} for name in ("new", "old"))
    unknown = {"name": "?", "memory_bytes": 2**30, "compute_capability": None}
    for said, status in (("8.0", "ok"), ("10.3", "ok"), ("7.5", "warning")):
        devices = [new | {"compute_capability": "9.0"}, old | {"compute_capability": said}, unknown]
        finding = cuda._devices("libcuda", devices, "")
        assert finding.status == status
        assert ("compute capability of old: vmm needs 8.0" in finding.found) == (status == "warning")


@pytest.mark.parametrize(
    ("behaviour", "words"),
    [
        ("crash late", "crashed with SIGABRT in reading attributes through cuda-bindings"),
        ("exit late", "ended with code 0 in reading attributes through cuda-bindings"),
    ],
)
def test_attributes_that_end_the_probe_do_not_lose_the_rest(with_attributes, checked, behaviour, words):
    finding, said = checked(with_attributes, behaviour)
    assert finding.status == "warning"
    assert words in finding.found
    assert said["devices"] == [{"name": "Fake GPU 7", "memory_bytes": 80 * 2**30, "peers": []}]


def test_cuda_bindings_that_do_not_fit_the_driver_are_a_warning(fake_folder, checked):
    pytest.importorskip("cuda.bindings", exc_type=ImportError)
    finding, said = checked(fake_folder)  # has no cuGetProcAddress
    assert finding.status == "warning"
    assert "cuda-bindings cannot read the devices' attributes: RuntimeError" in finding.found
    assert "pip install 'kvmm[cuda]'" in finding.advice
    assert said["devices"] == [{"name": "Fake GPU 7", "memory_bytes": 80 * 2**30, "peers": []}]


def test_cuda_bindings_are_found_and_not_imported():
    place = pytest.importorskip("cuda.bindings", exc_type=ImportError).__file__
    result = run_child("""
        import sys
        from vmm.doctor import cuda
        print(cuda._bindings_folder(), "cuda.bindings" in sys.modules)
        sys.path.clear()
        sys.path_importer_cache.clear()
        del sys.modules["cuda"]
        print(cuda._bindings_folder())
    """)
    assert result.stdout == f"{Path(place).parents[2]} False\nNone\n", result.stderr
