"""For tests and benchmarks of vmm and of what is built on it.

A pool can be looked at from outside, and drivers tested against the contract that every driver must keep.

`DriverContract` needs pytest, which is imported when the class is asked for and not before.
"""

from typing import Any

from vmm.testing.drivers import DriverUnderTest, Memory, mapped
from vmm.testing.kernel import KernelAccount, kernel_account, settle

__all__ = [
    "DriverContract",
    "DriverUnderTest",
    "KernelAccount",
    "Memory",
    "kernel_account",
    "mapped",
    "settle",
]

_PARTS = ("driver_mapping", "driver_refusals", "driver_streams")


def __getattr__(name: str) -> Any:
    if name != "DriverContract":
        raise AttributeError(f"module 'vmm.testing' has no attribute {name!r}")
    import pytest

    # A failing assertion shows its values only in modules that pytest has rewritten.
    pytest.register_assert_rewrite(*(f"vmm.testing.{part}" for part in _PARTS))
    from vmm.testing.driver_contract import DriverContract

    globals()[name] = DriverContract
    return DriverContract
