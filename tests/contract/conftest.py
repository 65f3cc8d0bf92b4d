"""The drivers that the contract is tested on. A driver to come adds a line to DRIVERS."""

import ctypes
from collections.abc import Callable
from dataclasses import dataclass

import cuda_standin
import pytest

from vmm import _core


@dataclass
class DriverUnderTest:
    name: str
    make: str  # an expression, so that a child process can make its own
    driver: _core.Driver
    read: Callable[[int, int], bytes]  # after all work that is queued
    read_now: Callable[[int, int], bytes]
    write: Callable[[int, bytes], None]
    committed_bytes: Callable[[], int]


def _host() -> DriverUnderTest:
    driver = _core.HostDriver("vmm-contract")
    return DriverUnderTest(
        name="host",
        make='_core.HostDriver("child")',
        driver=driver,
        read=ctypes.string_at,
        read_now=ctypes.string_at,
        write=lambda address, data: ctypes.memmove(address, data, len(data)),
        committed_bytes=lambda: driver.committed_bytes,
    )


def _cuda() -> DriverUnderTest:
    standin = cuda_standin.configured()
    before = cuda_standin.created_bytes()
    driver = _core.CudaDriver(0, host_accessible=True)

    def read(address: int, size: int) -> bytes:
        standin.sync_all()
        return ctypes.string_at(address, size)

    return DriverUnderTest(
        name="cuda on the stand-in",
        make=f"(ctypes.CDLL({cuda_standin.library()!r}), _core.CudaDriver(0, host_accessible=True))[1]",
        driver=driver,
        read=read,
        read_now=ctypes.string_at,
        write=lambda address, data: ctypes.memmove(address, data, len(data)),
        committed_bytes=lambda: cuda_standin.created_bytes() - before,
    )


DRIVERS = {"host": _host, "cuda": _cuda}


@pytest.fixture(params=sorted(DRIVERS))
def under_test(request):
    return DRIVERS[request.param]()


@pytest.fixture
def driver(under_test):
    return under_test.driver


@pytest.fixture
def page(driver):
    """The page size most tests use, in bytes."""
    return driver.default_page_bytes


@pytest.fixture
def arena(driver, page):
    """A reservation of 16 pages."""
    return driver.reserve(16 * page, page)
