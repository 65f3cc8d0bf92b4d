"""The stand-in keeps the driver's rules: the conformance scenarios, and what the driver leaves undefined."""

import ctypes
import os
import re

import conformance
import pytest
from cuda_calls import (
    INVALID_VALUE,
    NOT_FOUND,
    NOT_INITIALIZED,
    OUT_OF_MEMORY,
    SUCCESS,
    Access,
    Location,
    access,
    properties,
)

from child import run_child


@pytest.mark.parametrize("name", conformance.SCENARIOS)
def test_conformance(cuda, name):
    wrong = [step for step in conformance.run(cuda, name) if not step.ok]
    assert not wrong


def test_the_scenarios_hold_with_small_pages(standin, cuda):
    standin.set(granularity=65536)
    for name in conformance.SCENARIOS:
        assert all(step.ok for step in conformance.run(cuda, name)), name


def release_twice(b):
    handle = b.cuda.get_number("cuMemCreate", b.page, ctypes.byref(properties()), 0)
    b.cuda.do("cuMemRelease", handle)
    return b.cuda.cuMemRelease(handle)


def map_released(b):
    handle = b.cuda.get_number("cuMemCreate", b.page, ctypes.byref(properties()), 0)
    b.cuda.do("cuMemRelease", handle)
    return b.cuda.cuMemMap(b.reserve(1), b.page, 0, handle, 0)


def used_after(b, create, destroy, use):
    thing = b.cuda.get_number(create, 0)
    b.cuda.do(destroy, thing)
    return getattr(b.cuda, use)(thing)


def freed_twice(b):
    address = b.cuda.get_number("cuMemAlloc", 4096)
    b.cuda.do("cuMemFree", address)
    return b.cuda.cuMemFree(address)


UNDEFINED = {
    "an unknown handle": lambda b: b.cuda.cuMemRelease(12345),
    "a handle released twice": release_twice,
    "mapping a released handle": map_released,
    "an unknown event": lambda b: b.cuda.cuEventDestroy(12345),
    "an event used after its end": lambda b: used_after(b, "cuEventCreate", "cuEventDestroy", "cuEventQuery"),
    "a stream used after its end": lambda b: used_after(
        b, "cuStreamCreate", "cuStreamDestroy", "cuStreamSynchronize"
    ),
    "memory freed twice": freed_twice,
    "the default stream destroyed": lambda b: b.cuda.cuStreamDestroy(None),
}


@pytest.mark.parametrize("name", UNDEFINED)
def test_what_is_undefined_is_reported(standin, bench, name, capfd):
    with standin.counting():
        assert UNDEFINED[name](bench) != SUCCESS
    assert standin.reports == 1
    assert "called from" in standin.last_report
    assert "stand-in libcuda" in capfd.readouterr().err


def test_what_is_undefined_ends_the_process(standin_path):
    child = run_child(f"""
        import ctypes
        cuda = ctypes.CDLL({standin_path!r})
        cuda.cuInit(0)
        cuda.cuMemRelease(ctypes.c_uint64(7))
        print("survived")
    """)
    assert child.returncode == -6
    assert "cuMemRelease: no such allocation handle" in child.stderr
    assert "survived" not in child.stdout


def test_every_call_wants_init_first(standin_path):
    child = run_child(f"""
        import ctypes, re, subprocess
        cuda = ctypes.CDLL({standin_path!r})
        names = ["cuDeviceGetCount", "cuMemRelease", "cuMemUnmap", "cuStreamCreate", "cuCtxSynchronize",
                 "cuMemAlloc_v2", "cuEventQuery", "cuMemGetInfo_v2", "cuCtxGetCurrent"]
        arguments = [ctypes.c_void_p(0)] * 5
        print({{getattr(cuda, name)(*arguments) for name in names}}, cuda.cuInit(0), cuda.cuInit(0))
    """)
    assert child.stdout == f"{{{NOT_INITIALIZED}}} 0 0\n", child.stderr


def test_no_devices(standin_path):
    child = run_child(
        f"import ctypes; print(ctypes.CDLL({standin_path!r}).cuInit(0))",
        environment={**os.environ, "VMM_STANDIN_DEVICES": "0"},
    )
    assert child.stdout == "100\n"


def test_memory_without_access_kills(standin_path):
    for allowed, code in ((False, -11), (True, 0)):
        child = run_child(
            f"""
            import ctypes, sys
            sys.path[:0] = {[str(conformance.__file__).rsplit("/", 1)[0]]!r}
            import conformance, cuda_calls
            b = conformance.Bench(cuda_calls.Cuda(ctypes.CDLL({standin_path!r})))
            base = b.reserve(1)
            b.map(base, b.create())
            if {allowed}:
                b.allow(base)
            print(ctypes.string_at(base, 4))
            """
        )
        assert child.returncode == code, child.stderr
    assert child.stdout == "b'\\xff\\xff\\xff\\xff'\n"


def test_capacity(standin, cuda, bench):
    standin.set(capacity=3 * bench.page)
    handles = [bench.create() for _ in range(3)]
    made = ctypes.c_uint64()
    arguments = (ctypes.byref(made), bench.page, ctypes.byref(properties()), 0)
    assert cuda.cuMemCreate(*arguments) == OUT_OF_MEMORY
    assert cuda.cuMemAlloc(ctypes.byref(made), 1) == OUT_OF_MEMORY
    free, total = ctypes.c_size_t(), ctypes.c_size_t()
    cuda.do("cuMemGetInfo", ctypes.byref(free), ctypes.byref(total))
    assert (free.value, total.value) == (0, 3 * bench.page)

    # What another process takes is missing here, and comes back when it ends.
    standin.set(capacity=6 * bench.page, others=2 * bench.page)
    cuda.do("cuMemGetInfo", ctypes.byref(free), ctypes.byref(total))
    assert (free.value, total.value) == (bench.page, 6 * bench.page)
    standin.set(others=4 * bench.page)
    assert cuda.cuMemCreate(*arguments) == OUT_OF_MEMORY
    cuda.do("cuMemGetInfo", ctypes.byref(free), ctypes.byref(total))
    assert free.value == 0
    standin.set(capacity=3 * bench.page, others=0)

    # A mapping holds the memory, a second device has its own.
    base = bench.reserve(1)
    cuda.do("cuMemMap", base, bench.page, 0, handles[0], 0)
    cuda.do("cuMemRelease", handles[0])
    bench.done("cuMemRelease", handles[0])
    assert cuda.cuMemCreate(*arguments) == OUT_OF_MEMORY
    bench.create(device=1)
    cuda.do("cuMemUnmap", base, bench.page)
    bench.create()


def test_low_alignment(standin, bench):
    standin.set(low_alignment=1)
    base = bench.reserve(2, alignment=0)
    assert base % 65536 == 0
    assert base % bench.page != 0
    assert bench.cuda.cuMemMap(base, bench.page, 0, bench.create(), 0) == INVALID_VALUE
    assert bench.reserve(2) % bench.page == 0


def test_memory_comes_back_poisoned(standin, cuda, bench):
    base = bench.reserve(1)
    for _ in range(3):
        handle = cuda.get_number("cuMemCreate", bench.page, ctypes.byref(properties()), 0)
        cuda.do("cuMemMap", base, bench.page, 0, handle, 0)
        bench.allow(base)
        bytes_there = ctypes.create_string_buffer(bench.page)
        cuda.do("cuMemcpyDtoH", bytes_there, base, bench.page)
        assert set(bytes_there.raw) == {0xFF}
        cuda.do("cuMemsetD8", base, 1, bench.page)
        cuda.do("cuCtxSynchronize")
        cuda.do("cuMemUnmap", base, bench.page)
        cuda.do("cuMemRelease", handle)


def test_neighbouring_pages_are_one_mapping_of_the_process(standin, cuda, bench):
    standin.set(granularity=65536)
    bench.page = 65536
    base = bench.reserve(512)
    for at in range(512):
        bench.map(base + at * bench.page, bench.create())
    bench.allow(base, 512)
    end = base + 512 * bench.page
    with open("/proc/self/maps") as maps:
        starts = [int(re.match("[0-9a-f]+", line)[0], 16) for line in maps]
    assert sum(base <= start < end for start in starts) < 8


def test_an_import_is_another_handle_for_the_same_memory(standin, cuda, bench):
    handle = bench.create(handle_types=1)
    fd = ctypes.c_int()
    cuda.do("cuMemExportToShareableHandle", ctypes.byref(fd), handle, 1, 0)
    imported = cuda.get_number("cuMemImportFromShareableHandle", fd.value, 1)
    ctypes.CDLL(None).close(fd)
    assert imported != handle
    base = bench.reserve(2)
    bench.map(base, handle)
    cuda.do("cuMemMap", base + bench.page, bench.page, 0, imported, 0)
    bench.allow(base, 2)
    cuda.do("cuMemsetD8", base, 5, bench.page)
    byte = ctypes.create_string_buffer(1)
    cuda.do("cuMemcpyDtoH", byte, base + bench.page, 1)
    assert byte.raw == b"\5"
    cuda.do("cuMemUnmap", base + bench.page, bench.page)
    cuda.do("cuMemRelease", imported)
    assert standin.live()["bytes"] == {"0": bench.page}


def test_host_pages_take_two_accesses(cuda, bench):
    handle = bench.create(location=Location(3, 0))
    base = bench.reserve(1)
    bench.map(base, handle)
    both = (Access * 2)(access(), Access(Location(3, 0), 3))
    assert cuda.cuMemSetAccess(base, bench.page, both, 2) == SUCCESS


def test_versions_of_the_driver(standin, cuda, bench):
    find = cuda.get
    address, status = ctypes.c_void_p(), ctypes.c_int()

    def result(name, version):
        code = find(name, ctypes.byref(address), version, 0, ctypes.byref(status))
        return code, status.value, bool(address.value)

    assert result(b"cuMemMap", 10020) == (SUCCESS, 0, True)
    assert result(b"cuMemMap", 9000) == (NOT_FOUND, 2, False)
    assert result(b"cuNoSuchCall", 12000) == (NOT_FOUND, 1, False)
    assert find(b"cuMemMap", ctypes.byref(address), 13010, 0, None) == INVALID_VALUE
    standin.set(missing_result=0)
    assert result(b"cuNoSuchCall", 12000) == (SUCCESS, 1, False)
    standin.set(version=12000)
    assert result(b"cuEventElapsedTime", 12000) == (SUCCESS, 0, True)
    assert find(b"cuMemMap", ctypes.byref(address), 12010, 0, None) == INVALID_VALUE
    on_host = ctypes.byref(properties(location=Location(2, 0)))
    assert cuda.cuMemCreate(ctypes.byref(address), bench.page, on_host, 0) == INVALID_VALUE


def test_a_lost_context_answers_every_call(standin, cuda, bench):
    standin.poison(700)
    assert cuda.cuEventCreate(ctypes.byref(ctypes.c_uint64()), 0) == 700
    assert cuda.cuCtxSynchronize() == 700
    standin.poison(0)
    assert cuda.cuCtxSynchronize() == SUCCESS


def test_no_scenario_is_lost():
    assert len(conformance.SCENARIOS) >= 47
