"""The simulated driver's failures and delays: from a seed, and with nothing left behind."""

import pytest

from vmm import DriverError, DriverOutOfMemory, InvalidArgument
from vmm._core import CheckedDriver, SimDriver

PAGE = 2**21
A_THIRD = 333_333  # per million


class Course:
    """The same calls on any driver; which of them failed, when, and what the driver then has."""

    def __init__(self, sim, rounds=50):
        self.sim = sim
        self.driver = CheckedDriver(sim)
        self.failed = []
        self.errors = []
        self.times = []
        for _ in range(rounds):
            self.round()

    def attempt(self, call, *arguments):
        """Until it does not fail."""
        created = self.sim.created_bytes
        while True:
            try:
                result = call(*arguments)
            except DriverError as error:
                self.failed.append(call.__name__)
                self.errors.append(error)
            else:
                self.times.append(self.sim.now_ns)
                return result
            assert self.sim.created_bytes == created

    def round(self):
        arena = self.attempt(self.driver.reserve, 4 * PAGE, PAGE)
        pages = [self.attempt(self.driver.create, PAGE, 0) for _ in range(4)]
        entries = [(arena + i * PAGE, page, PAGE) for i, page in enumerate(pages)]
        self.attempt(self.driver.map, entries)  # twice, were a failed one to leave anything: refused
        self.attempt(self.driver.set_access, entries)
        self.driver.zero(arena, 4 * PAGE)
        self.unmap(entries)
        self.driver.destroy_event(self.attempt(self.driver.record))
        for page in pages:
            self.driver.release(page)
        self.driver.free_reservation(arena, 4 * PAGE)
        assert self.sim.created_bytes == 0

    def unmap(self, entries):
        while entries:
            try:
                self.driver.unmap(entries)
                return
            except DriverError as error:
                self.failed.append("unmap")
                self.errors.append(error)
            done, left = entries[: len(entries) // 2], entries[len(entries) // 2 :]
            self.attempt(self.driver.set_access, left)  # would be refused, were any unmapped
            for entry in done:
                with pytest.raises(InvalidArgument, match="no mapping"):
                    self.driver.unmap([entry])
            entries = left


def test_failed_calls_leave_nothing_behind_and_unmap_half():
    course = Course(SimDriver(seed=1, failures_per_million=A_THIRD))
    assert set(course.failed) == {"reserve", "create", "map", "set_access", "unmap", "record"}
    assert all("injected" in str(error) for error in course.errors)
    for name, error in zip(course.failed, course.errors, strict=True):
        assert isinstance(error, DriverOutOfMemory) == (name == "create")
    assert course.sim.failures == len(course.failed)
    course.sim.check()


def test_the_same_seed_fails_the_same_calls():
    first, again, other = (Course(SimDriver(seed=s, failures_per_million=A_THIRD)) for s in (5, 5, 6))
    assert (first.failed, first.times) == (again.failed, again.times)
    assert first.failed != other.failed


def test_failures_can_be_stopped():
    driver = SimDriver(seed=1, failures_per_million=1_000_000)
    with pytest.raises(DriverError, match="reserve: injected"):
        driver.reserve(PAGE, PAGE)
    driver.stop_faults()
    assert Course(driver).failed == []


def test_delays_are_within_their_bound_and_of_the_seed():
    def created_in(driver):
        before = driver.now_ns
        driver.create(PAGE, 0)
        return driver.now_ns - before

    def waits(seed, per_million):
        driver = SimDriver(seed=seed, delays_per_million=per_million, longest_delay_ns=1_000, create_ns=0)
        return [created_in(driver) for _ in range(2_000)]

    every = waits(1, 1_000_000)
    assert min(every) >= 1
    assert max(every) <= 1_000
    assert len(set(every)) > 500
    some = waits(1, A_THIRD)
    assert 500 < some.count(0) < 1_500
    assert some == waits(1, A_THIRD) != waits(2, A_THIRD)
    assert set(waits(1, 0)) == {0}
