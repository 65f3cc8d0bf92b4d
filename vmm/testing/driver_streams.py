"""The driver contract: streams and events."""

from __future__ import annotations

import itertools

import pytest

from vmm import _core
from vmm.errors import InvalidArgument
from vmm.testing.drivers import DriverUnderTest, Memory, mapped


class StreamContract:
    def test_streams_and_events(self, driver: _core.Driver) -> None:
        stream = driver.create_stream()
        event = driver.record(stream)
        driver.wait(event)
        assert driver.query(event)
        driver.destroy_event(event)
        driver.destroy_stream(stream)
        if not driver.foreign_streams:
            with pytest.raises(InvalidArgument, match="stream"):
                driver.record(stream)
        with pytest.raises(InvalidArgument, match="event"):
            driver.query(event)

    def test_work_on_a_stream_is_done_in_order(
        self, memory: Memory, driver: _core.Driver, arena: int, page: int
    ) -> None:
        entries = mapped(driver, arena, page, 8)
        memory.write(arena, b"\x07" * page)
        stream = driver.create_stream()
        for entry, following in itertools.pairwise(entries):
            driver.copy(following[0], entry[0], page, stream)
        driver.zero(arena, page, stream)
        event = driver.record(stream)
        driver.wait(event)
        assert driver.query(event)
        assert memory.read(arena, page) == bytes(page)
        assert memory.read(entries[-1][0], page) == b"\x07" * page
        driver.destroy_event(event)
        driver.destroy_stream(stream)

    def test_streams_run_beside_the_caller_and_each_other(
        self, under_test: DriverUnderTest, driver: _core.Driver, arena: int, page: int
    ) -> None:
        mapped(driver, arena, page, 8)
        busy, idle = driver.create_stream(), driver.create_stream()

        def caller_was_faster() -> bool:
            under_test.queue_work(2000, arena, 8 * page, busy)
            behind, at_once = driver.record(busy), driver.record(idle)
            seen = not driver.query(behind) and driver.query(at_once)
            driver.wait(behind)
            assert driver.query(behind)
            for event in (behind, at_once):
                driver.destroy_event(event)
            return seen

        assert any(caller_was_faster() for _ in range(10))
        driver.destroy_stream(busy)
        driver.destroy_stream(idle)

    def test_an_event_of_the_whole_device_waits_for_every_stream(
        self, under_test: DriverUnderTest, driver: _core.Driver, arena: int, page: int
    ) -> None:
        if not driver.device_events:
            pytest.skip("the driver has no events of the whole device")
        mapped(driver, arena, page, 8)
        streams = [driver.create_stream() for _ in range(3)]

        def was_waiting() -> bool:
            for i, stream in enumerate(streams):
                under_test.queue_work(500, arena + 2 * i * page, 2 * page, stream)
            behind = [driver.record(stream) for stream in streams]
            event = driver.record(_core.WHOLE_DEVICE)
            seen = not driver.query(event)
            driver.wait(event)
            assert driver.query(event)
            assert all(driver.query(each) for each in behind)
            for each in (event, *behind):
                driver.destroy_event(each)
            return seen

        assert any(was_waiting() for _ in range(10))
        for stream in streams:
            driver.destroy_stream(stream)
        event = driver.record(_core.WHOLE_DEVICE)
        driver.wait(event)  # nothing is left to wait for
        driver.destroy_event(event)

    def test_work_on_the_default_stream_is_over_when_the_call_returns(
        self, memory: Memory, driver: _core.Driver, arena: int, page: int
    ) -> None:
        mapped(driver, arena, page, 1)
        memory.write(arena, b"\x07" * page)
        driver.zero(arena, page)
        assert memory.read_now(arena, page) == bytes(page)

    def test_destroying_a_stream_waits_for_its_work(
        self, under_test: DriverUnderTest, driver: _core.Driver, arena: int, page: int
    ) -> None:
        mapped(driver, arena, page, 8)
        stream = driver.create_stream()
        under_test.queue_work(100, arena, 8 * page, stream)
        event = driver.record(stream)
        driver.destroy_stream(stream)
        assert driver.query(event)
        driver.wait(event)
