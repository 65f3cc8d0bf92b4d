"""What is the simulated driver's own: its time, and what it watches. Its failures: test_sim_faults.py."""

import pytest

from vmm import DriverOutOfMemory, InvalidArgument, InvariantViolation
from vmm._core import CheckedDriver, SimDriver
from vmm.testing import mapped

PAGE = 2**21
TIMES = {
    "reserve_ns": 1,
    "create_ns": 20,
    "map_ns": 300,
    "set_access_ns": 4_000,
    "unmap_ns": 50_000,
    "release_ns": 600_000,
    "event_ns": 7_000_000,
}


@pytest.fixture
def sim():
    return SimDriver()


@pytest.fixture
def space(sim):
    return sim.reserve(16 * PAGE, PAGE)


def took(driver, call, *arguments):
    before = driver.now_ns
    result = call(*arguments)
    return driver.now_ns - before, result


def test_every_call_takes_its_time_from_the_table():
    driver = SimDriver(**TIMES)
    time, arena = took(driver, driver.reserve, 8 * PAGE, PAGE)
    assert time == 1
    time, page = took(driver, driver.create, PAGE, 0)
    assert time == 20
    entries = [(arena, page, PAGE), (arena + PAGE, driver.create(PAGE, 0), PAGE)]
    assert took(driver, driver.map, entries)[0] == 2 * 300
    assert took(driver, driver.set_access, entries)[0] == 2 * 4_000
    assert took(driver, driver.copy, arena, arena + PAGE, PAGE)[0] == 0
    assert took(driver, driver.unmap, entries)[0] == 2 * 50_000
    assert took(driver, driver.release, page)[0] == 600_000
    time, event = took(driver, driver.record)
    assert time == 7_000_000
    assert took(driver, driver.query, event)[0] == 0


def test_the_defaults_are_the_published_times(sim):
    assert took(sim, sim.create, PAGE, 0)[0] == 193_000


def test_larger_pages_take_longer_in_proportion():
    driver = SimDriver(**TIMES)
    for pages in (1, 2, 8):
        assert took(driver, driver.create, pages * PAGE, 0)[0] == 20 * pages


@pytest.mark.parametrize(
    "make",
    [
        lambda: SimDriver(granularity=0),
        lambda: SimDriver(granularity=3),
        lambda: SimDriver(map_ns=-1),
        lambda: SimDriver(actors=0),
        lambda: SimDriver().turn(1),
        lambda: SimDriver().advance(-1),
        lambda: SimDriver().run(0, -1),
    ],
)
def test_what_would_end_or_turn_back_time_is_refused(make):
    with pytest.raises(InvalidArgument):
        make()


def test_a_refused_call_takes_no_time(sim):
    checked = CheckedDriver(sim)
    space = checked.reserve(16 * PAGE, PAGE)
    [entry] = mapped(checked, space, PAGE, 1)
    for call, argument in (
        (checked.map, [entry]),
        (checked.release, entry[1]),
        (checked.unmap, [(space, 99, PAGE)]),
    ):
        before = sim.now_ns
        with pytest.raises(InvalidArgument):
            call(argument)
        assert sim.now_ns == before


def test_capacity_is_what_can_be_created():
    driver = SimDriver(capacity=3 * PAGE)
    page = driver.create(PAGE, 0)
    driver.create(2 * PAGE, 0)
    with pytest.raises(DriverOutOfMemory, match="6291456"):
        driver.create(PAGE, 0)
    assert driver.created_bytes == 3 * PAGE
    driver.release(page)
    driver.create(PAGE, 0)


def test_events_are_over_when_the_clock_has_passed_them(sim):
    stream = sim.create_stream()
    sim.run(stream, 1_000_000)
    event = sim.record(stream)
    sim.run(stream, 500_000)  # after the event: not waited for
    over = sim.over_at_ns(stream) - 500_000
    sim.advance(over - sim.now_ns - 1)
    assert not sim.query(event)
    sim.advance(1)
    assert sim.query(event)
    later = sim.record(stream)
    sim.wait(later)
    assert sim.now_ns == over + 500_000


def test_work_begins_when_what_is_before_it_is_over(sim):
    stream = sim.create_stream()
    sim.run(stream, 1_000)
    sim.run(stream, 1_000)
    assert sim.over_at_ns(stream) == sim.now_ns + 2_000
    sim.advance(5_000)
    sim.run(stream, 1_000)
    assert sim.over_at_ns(stream) == sim.now_ns + 1_000
    assert took(sim, sim.destroy_stream, stream)[0] == 1_000


def test_the_default_stream_is_the_callers_time(sim):
    assert took(sim, sim.run, 0, 1_000)[0] == 1_000
    assert sim.query(sim.record())


def test_what_work_under_way_uses_is_not_unmapped(sim, space):
    entries = mapped(sim, space, PAGE, 4)
    stream = sim.create_stream()
    sim.run(stream, 1_000_000, [(space + PAGE + 5, 10)])
    sim.copy(space + 2 * PAGE, space + 3 * PAGE, 10, stream)  # takes no time, but waits for the work
    before = sim.now_ns
    for entry in entries[1:]:
        with pytest.raises(InvalidArgument, match="under way"):
            sim.unmap([entries[0], entry])
    assert sim.now_ns == before
    with pytest.raises(InvariantViolation, match="under way"):
        sim.check()  # it remembers, for those who swallow refusals
    sim.wait(sim.record(stream))
    sim.unmap(entries)  # the first too: none of the refused batches unmapped it


def test_touching_what_is_not_mapped_or_not_accessible_is_found(sim, space):
    mapped(sim, space, PAGE, 2)
    sim.map([(space + 2 * PAGE, sim.create(PAGE, 0), PAGE)])
    assert sim.touch([(space, 2 * PAGE)], sim.now_ns) == (0, 2, 0)
    for start, size in ((space, 2 * PAGE + 1), (space + 3 * PAGE, 1), (space - 1, 2), (space, 2**64 - space)):
        with pytest.raises(InvariantViolation, match="touch"):
            sim.touch([(start, size)], sim.now_ns)


def test_the_first_touch_of_a_mapping_is_counted_once(sim, space):
    [entry] = mapped(sim, space, PAGE, 1)
    assert sim.touch([(space, 5), (space + 5, 5)], sim.now_ns) == (0, 1, 0)
    assert sim.touch([(space, PAGE)], sim.now_ns) == (0, 0, 0)
    sim.unmap([entry])
    mapped(sim, space, PAGE, 1)
    assert sim.touch([(space, PAGE)], sim.now_ns) == (0, 1, 0)


def test_late_pages_are_counted_and_waited_for():
    caller, pager = 0, 1
    driver = SimDriver(actors=2)
    arena = driver.reserve(4 * PAGE, PAGE)
    mapped(driver, arena, PAGE, 1)
    called = driver.now_ns
    driver.turn(pager)
    driver.advance(called)  # both begin now
    entries = mapped(driver, arena, PAGE, 2, first=1)
    ready = driver.now_ns
    driver.set_access(entries)  # again: they are not later for that
    driver.turn(caller)
    assert driver.now_ns == called < ready
    assert driver.touch([(arena, PAGE)], called) == (0, 1, 0)
    assert driver.touch([(arena + PAGE, 2 * PAGE)], called) == (ready - called, 2, 2)
    assert driver.now_ns == ready
