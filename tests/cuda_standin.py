"""The CUDA driver on the stand-in libcuda.so.1, for suites that run on every device."""

import contextlib
import fcntl
import functools
import gc
import os
import shutil
import subprocess
import sys
from pathlib import Path

ON_CUDA = os.environ.get("VMM_TEST_DRIVER") == "cuda"  # see conftest.py
HERE = Path(__file__).parent / "standin"
BUILD = HERE.parents[1] / "build" / "standin"
sys.path.insert(0, str(HERE))


@functools.cache
def library() -> str:
    """Where libcuda.so.1 is, built if need be. VMM_STANDIN_LIBRARY names another build, with sanitizers for
    example."""
    if given := os.environ.get("VMM_STANDIN_LIBRARY"):
        return given
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    cmake, ninja = (shutil.which(tool, path=path) for tool in ("cmake", "ninja"))
    configure = [cmake, "-S", str(HERE), "-B", str(BUILD), "-G", "Ninja", f"-DCMAKE_MAKE_PROGRAM={ninja}"]
    BUILD.mkdir(parents=True, exist_ok=True)
    with (BUILD / ".lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)  # tests run in several processes
        for command in (configure, [cmake, "--build", str(BUILD)]):
            subprocess.run(command, check=True, capture_output=True, timeout=280)
    return str(BUILD / "libcuda.so.1")


def shown_as_cpu(set_attribute=setattr):
    """From here on every pool is on the stand-in's device 0, whose pages torch takes for the CPU's."""
    from vmm import devices

    set_attribute(devices, "parsed_device", lambda device: ("cpu", 0))
    set_attribute(devices, "cuda_host_accessible", True)


@functools.cache
def loaded():
    """The stand-in, in this process from now on."""
    import standin

    return standin.load(library())


def configured(*, granularity: int = 2**21, capacity: int = 2**30):
    """The stand-in with these settings. What earlier tests left in reference cycles is still alive in it."""
    found = loaded()
    found.set(granularity=granularity, capacity=capacity, devices=2)
    return found


@contextlib.contextmanager
def without_misuse(granularity: int):
    """The stand-in, which reports memory that is taken away or overwritten under queued work. When all work
    is over it must have reported nothing but what the test has counted into ``reported``."""
    found = configured(granularity=granularity)
    gc.collect()  # what an exception's frames hold on to
    found.reported = found.reports  # by others, on purpose
    with found.counting():
        yield found
        found.set(hang=0)
        found.sync_all()
        assert found.reports == found.reported, found.last_report


@contextlib.contextmanager
def own_calls():
    """This thread's own calls to the stand-in, with device 0's context current."""
    from cuda_calls import Cuda

    made = Cuda(loaded().library)
    made.do("cuInit", 0)
    made.do("cuCtxSetCurrent", made.get_number("cuDevicePrimaryCtxRetain", 0))
    try:
        yield made
    finally:
        made.do("cuCtxSetCurrent", None)
        made.do("cuDevicePrimaryCtxRelease", 0)


@contextlib.contextmanager
def as_it_was():
    """Memory and addresses that are taken inside, and not given back, are given back."""

    def taken():
        live = loaded().live()
        return (
            {(mapping["start"], mapping["size"]) for mapping in live["mappings"]},
            {handle["id"] for handle in live["handles"]},
            {(range["start"], range["size"]) for range in live["reservations"]},
        )

    before = taken()
    yield
    loaded().sync_all()
    mappings, handles, reservations = (now - then for now, then in zip(taken(), before, strict=True))
    with own_calls() as cuda:
        for start, size in mappings:
            cuda.do("cuMemUnmap", start, size)
        for handle in handles:
            cuda.do("cuMemRelease", handle)
        for start, size in reservations:
            cuda.do("cuMemAddressFree", start, size)


def created_bytes() -> int:
    return sum(handle["size"] for handle in loaded().live()["handles"])
