"""Our own drivers keep the contract (vmm/testing/driver_contract.py)."""

from vmm.testing import DriverContract


class TestDrivers(DriverContract):
    """Each driver of conftest.DRIVERS."""
