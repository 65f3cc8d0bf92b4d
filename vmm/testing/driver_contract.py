"""The driver contract (csrc/driver/driver.h) as tests for whoever writes a driver."""

from __future__ import annotations

import pytest

from vmm import _core
from vmm.testing.driver_mapping import MappingContract
from vmm.testing.driver_refusals import RefusalContract
from vmm.testing.driver_streams import StreamContract
from vmm.testing.drivers import DriverUnderTest, Memory


class DriverContract(MappingContract, RefusalContract, StreamContract):
    """What every driver must do.

    pytest runs a subclass whose name begins with ``Test``. It has a fixture ``new_driver``, which gives a new
    `DriverUnderTest` to each test::

        class TestMyDriver(DriverContract):
            @pytest.fixture
            def new_driver(self):
                driver = MyDriver()
                return DriverUnderTest(
                    make="__import__('my_driver').MyDriver()",
                    driver=driver,
                    committed_bytes=lambda: driver.committed_bytes,
                    queue_work=lambda times, *where: [driver.zero(*where) for _ in range(times)],
                    memory=Memory(ctypes.string_at),
                )

    Each test runs twice: with the driver within a CheckedDriver, as the engine uses it, and with the driver
    alone. Refusals are tested only with the first, because nothing is promised of a driver alone whose rules
    are broken. What a driver says that it cannot do (``host_accessible``, ``zero_gaps``) is skipped.
    """

    def pytest_generate_tests(self, metafunc: pytest.Metafunc) -> None:
        if "wrapping" in metafunc.fixturenames:
            only_checked = "only_checked" in metafunc.fixturenames
            metafunc.parametrize("wrapping", ["checked"] if only_checked else ["checked", "alone"])

    @pytest.fixture
    def only_checked(self) -> None:
        """For tests of refusals."""

    @pytest.fixture
    def under_test(self, wrapping: str, new_driver: DriverUnderTest) -> DriverUnderTest:
        return new_driver.checked() if wrapping == "checked" else new_driver

    @pytest.fixture
    def driver(self, under_test: DriverUnderTest) -> _core.Driver:
        return under_test.driver

    @pytest.fixture
    def refuses(self, wrapping: str) -> bool:
        """Whether the driver refuses what breaks a rule."""
        return wrapping == "checked"

    @pytest.fixture
    def memory(self, under_test: DriverUnderTest) -> Memory | None:
        if not under_test.driver.host_accessible:
            pytest.skip("the CPU cannot reach this driver's memory")
        return under_test.memory

    @pytest.fixture
    def page(self, driver: _core.Driver) -> int:
        """The page size that most tests use, in bytes."""
        return driver.default_page_bytes

    @pytest.fixture
    def arena(self, driver: _core.Driver, page: int) -> int:
        """A reservation of 16 pages."""
        return driver.reserve(16 * page, page)
