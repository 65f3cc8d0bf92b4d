"""What the driver contract must be told of a driver, and what its tests begin with."""

from __future__ import annotations

import ctypes
import subprocess
import sys
import textwrap
from collections.abc import Callable
from dataclasses import dataclass, replace

from vmm import _core

Entry = tuple[int, int, int]  # an address, the page there, and its size in bytes

_WITH_ARENA = """
import ctypes, os
from vmm import _core
driver = {make}
page = driver.default_page_bytes
arena = driver.reserve(16 * page, page)
"""


@dataclass
class Memory:
    """What the CPU sees of a driver's mapped pages. ``read(address, size)`` waits for all work that is queued
    and returns the bytes."""

    read: Callable[[int, int], bytes]

    def read_now(self, address: int, size: int) -> bytes:
        """The bytes that are there now, whatever is queued."""
        return ctypes.string_at(address, size)

    def write(self, address: int, data: bytes) -> None:
        ctypes.memmove(address, data, len(data))


@dataclass
class DriverUnderTest:
    """A new driver, and how the tests look at it from outside.

    ``driver`` is the driver itself. ``make`` is a Python expression that makes another one in another
    process, which has imported ``ctypes`` and ``vmm._core`` as ``_core``. ``committed_bytes()`` is the
    physical memory that the driver has created and not released. ``queue_work(times, address, size, stream)``
    puts work on a stream that touches a range, and takes the longer the more ``times`` it is. ``memory``
    reads and writes mapped pages from the CPU; None where the driver is not ``host_accessible``.
    """

    make: str
    driver: _core.Driver
    committed_bytes: Callable[[], int]
    queue_work: Callable[[int, int, int, int], None]
    memory: Memory | None = None

    def checked(self) -> DriverUnderTest:
        """The same driver within a CheckedDriver, as the engine uses it."""
        return replace(
            self, make=f"_core.CheckedDriver({self.make})", driver=_core.CheckedDriver(self.driver)
        )

    def run_in_child(self, code: str) -> subprocess.CompletedProcess[str]:
        """Runs ``code`` in a process of its own, so that a signal is a result and does not end the tests. The
        code finds a ``driver`` like this one, the size of a ``page``, and an ``arena`` of 16 pages. The
        returncode is -signal where a signal ended it."""
        program = _WITH_ARENA.format(make=self.make) + textwrap.dedent(code)
        command = [sys.executable, "-c", program]
        return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def mapped(driver: _core.Driver, arena: int, page: int, count: int, first: int = 0) -> list[Entry]:
    """Maps ``count`` fresh pages of ``page`` bytes into ``arena``, from its page number ``first`` on, and
    makes them readable and writable. Returns their entries."""
    entries = [
        (arena + (first + i) * page, driver.create(page, (first + i) * page), page) for i in range(count)
    ]
    driver.map(entries)
    driver.set_access(entries)
    return entries
