"""vmm.testing as others use it: what it imports, and how the driver contract tells of a broken driver."""

import subprocess
import sys

from child import run_child

CONTRACT = """
import ctypes

import pytest
from vmm import _core
from vmm.testing import DriverContract, DriverUnderTest, Memory


def under_test(driver):
    return DriverUnderTest(
        make='_core.HostDriver("child")',
        driver=driver,
        committed_bytes=lambda: driver.committed_bytes - WRONG,
        queue_work=lambda times, *where: [driver.zero(*where) for _ in range(times)],
        memory=Memory(ctypes.string_at),
    )


class TestHostDriver(DriverContract):
    @pytest.fixture
    def new_driver(self):
        return under_test(_core.HostDriver("vmm-own"))
"""


def test_pytest_is_imported_for_the_contract_only():
    result = run_child("""
        import sys
        from vmm.testing import kernel_account
        assert "pytest" not in sys.modules
        sys.modules["pytest"] = None  # as where it is not installed
        try:
            from vmm.testing import DriverContract
        except ImportError as error:
            print(error.name)
    """)
    assert (result.returncode, result.stdout) == (0, "pytest\n"), result.stderr


def run_contract(folder, wrong):
    (folder / "test_own.py").write_text(CONTRACT.replace("WRONG", str(wrong)))
    # Of one process each: what is touched without being mapped has tests enough.
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", "not kills", "."]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120, check=False)


def test_a_driver_that_keeps_the_contract(tmp_path):
    result = run_contract(tmp_path, 0)
    assert result.returncode == 0, result.stdout + result.stderr
    assert " failed" not in result.stdout


def test_a_driver_that_breaks_it_is_told_how(tmp_path):
    result = run_contract(tmp_path, 1)
    assert result.returncode == 1, result.stdout + result.stderr
    assert "2 failed" in result.stdout  # within a CheckedDriver, and alone
    assert "test_memory_is_what_was_created" in result.stdout
    assert "assert 65535 == 65536" in result.stdout  # by pytest's own account of a failed assertion
