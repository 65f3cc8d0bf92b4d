"""The drivers that the contract is tested on. A driver to come adds a line to DRIVERS."""

import contextlib
import ctypes

import cuda_standin
import pytest

from vmm import _core
from vmm.testing import DriverUnderTest, Memory


def _zeroing(driver):
    """Work for drivers that do some: the more, the longer it takes."""

    def queue_work(times: int, address: int, size: int, stream: int) -> None:
        for _ in range(times):
            driver.zero(address, size, stream)

    return queue_work


def _host() -> DriverUnderTest:
    driver = _core.HostDriver("vmm-contract")
    return DriverUnderTest(
        make='_core.HostDriver("child")',
        driver=driver,
        committed_bytes=lambda: driver.committed_bytes,
        queue_work=_zeroing(driver),
        memory=Memory(ctypes.string_at),
    )


def _cuda() -> DriverUnderTest:
    standin = cuda_standin.configured()
    before = cuda_standin.created_bytes()
    driver = _core.CudaDriver(0, host_accessible=True)

    def read(address: int, size: int) -> bytes:
        standin.sync_all()
        return ctypes.string_at(address, size)

    return DriverUnderTest(
        make=f"(ctypes.CDLL({cuda_standin.library()!r}), _core.CudaDriver(0, host_accessible=True))[1]",
        driver=driver,
        committed_bytes=lambda: cuda_standin.created_bytes() - before,
        queue_work=_zeroing(driver),
        memory=Memory(read),
    )


def _simulation() -> DriverUnderTest:
    driver = _core.SimDriver()

    def queue_work(times: int, address: int, size: int, stream: int) -> None:
        driver.run(stream, times * 10_000, [(address, size)])

    return DriverUnderTest(
        make="_core.SimDriver()",
        driver=driver,
        committed_bytes=lambda: driver.created_bytes,
        queue_work=queue_work,
    )


DRIVERS = {"host": _host, "cuda": _cuda, "simulation": _simulation}


@pytest.fixture(params=sorted(DRIVERS))
def new_driver(request):
    # A driver gives nothing back that its user has not: on the stand-in it would lie in later tests' way.
    with cuda_standin.as_it_was() if request.param == "cuda" else contextlib.nullcontext():
        yield DRIVERS[request.param]()
