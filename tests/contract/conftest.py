"""The drivers that the contract is tested on. A driver to come adds a line to DRIVERS.

Each is tested as the engine uses it, within a CheckedDriver, and bare: what is refused needs the first.
"""

import contextlib
import ctypes
from collections.abc import Callable
from dataclasses import dataclass, replace

import cuda_standin
import pytest

from vmm import _core


@dataclass
class Memory:
    """What the CPU sees of a driver's mapped pages."""

    read: Callable[[int, int], bytes]  # after all work that is queued

    def read_now(self, address: int, size: int) -> bytes:
        return ctypes.string_at(address, size)

    def write(self, address: int, data: bytes) -> None:
        ctypes.memmove(address, data, len(data))


@dataclass
class DriverUnderTest:
    make: str  # an expression, so that a child process can make its own
    driver: _core.Driver
    committed_bytes: Callable[[], int]
    queue_work: Callable[[int, int, int, int], None]  # how much, on a range, on a stream: see _zeroing
    memory: Memory | None = None  # where the driver says host_accessible


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


def pytest_generate_tests(metafunc):
    if "under_test" in metafunc.fixturenames:
        hows = ["checked"] if "only_checked" in metafunc.fixturenames else ["checked", "bare"]
        names = [f"{how} {name}" for name in sorted(DRIVERS) for how in hows]
        metafunc.parametrize("under_test", names, indirect=True)


@pytest.fixture
def only_checked():
    """For tests of refusals: nothing is promised of a bare driver whose rules are broken."""


@pytest.fixture
def under_test(request):
    how, name = request.param.split()
    # A driver gives nothing back that its user has not: on the stand-in it would lie in later tests' way.
    with cuda_standin.as_it_was() if name == "cuda" else contextlib.nullcontext():
        made = DRIVERS[name]()
        if how == "checked":
            made = replace(
                made, make=f"_core.CheckedDriver({made.make})", driver=_core.CheckedDriver(made.driver)
            )
        yield made


@pytest.fixture
def driver(under_test):
    return under_test.driver


@pytest.fixture
def refuses(driver):
    """Whether the driver refuses what breaks a rule."""
    return isinstance(driver, _core.CheckedDriver)


@pytest.fixture
def memory(under_test):
    if not under_test.driver.host_accessible:
        pytest.skip("the CPU cannot reach this driver's memory")
    return under_test.memory


@pytest.fixture
def page(driver):
    """The page size most tests use, in bytes."""
    return driver.default_page_bytes


@pytest.fixture
def arena(driver, page):
    """A reservation of 16 pages."""
    return driver.reserve(16 * page, page)
