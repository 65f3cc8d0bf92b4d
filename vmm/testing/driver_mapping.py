"""The driver contract: reservations, pages, and what is mapped."""

from __future__ import annotations

import pytest

from vmm import _core
from vmm.errors import InvalidArgument
from vmm.testing.drivers import DriverUnderTest, Memory, mapped


class MappingContract:
    def test_reservations_are_aligned_and_apart(self, driver: _core.Driver, page: int) -> None:
        first = driver.reserve(4 * page, 8 * page)
        second = driver.reserve(4 * page, page)
        assert first % (8 * page) == 0
        assert abs(first - second) >= 4 * page
        driver.free_reservation(first, 4 * page)
        driver.free_reservation(second, 4 * page)

    def test_a_page_keeps_its_bytes_wherever_it_is_mapped(
        self, memory: Memory, driver: _core.Driver, arena: int, page: int
    ) -> None:
        [entry] = mapped(driver, arena, page, 1)
        memory.write(entry[0], b"kept" * 16)
        driver.unmap([entry])
        elsewhere = (arena + 5 * page, entry[1], page)
        driver.map([elsewhere])
        driver.set_access([elsewhere])
        assert memory.read(elsewhere[0], 64) == b"kept" * 16

    def test_one_page_at_two_addresses_is_one_memory(
        self, memory: Memory, driver: _core.Driver, arena: int, page: int
    ) -> None:
        [entry] = mapped(driver, arena, page, 1)
        alias = (arena + 3 * page, entry[1], page)
        driver.map([alias])
        driver.set_access([alias])
        memory.write(entry[0] + 100, b"seen")
        assert memory.read(alias[0] + 100, 4) == b"seen"
        driver.unmap([entry])
        assert memory.read(alias[0] + 100, 4) == b"seen"

    def test_a_page_at_two_addresses_is_in_use_until_it_is_at_none(
        self, driver: _core.Driver, refuses: bool, arena: int, page: int
    ) -> None:
        [entry] = mapped(driver, arena, page, 1)
        alias = (arena + 3 * page, entry[1], page)
        driver.map([alias])
        driver.set_access([alias])
        driver.unmap([entry])
        driver.zero(alias[0], page)  # would be refused, were it not mapped
        if refuses:
            with pytest.raises(InvalidArgument, match="mapped"):
                driver.release(entry[1])
        driver.unmap([alias])
        driver.release(entry[1])

    def test_fresh_pages_are_zero_where_the_driver_says_so(
        self, memory: Memory, driver: _core.Driver, arena: int, page: int
    ) -> None:
        [entry] = mapped(driver, arena, page, 1)
        if driver.fresh_pages_are_zero:
            assert memory.read(entry[0], page) == bytes(page)

    def test_memory_is_what_was_created(
        self, under_test: DriverUnderTest, driver: _core.Driver, arena: int, page: int
    ) -> None:
        unmapped = driver.create(page, 12 * page)
        assert under_test.committed_bytes() == page
        driver.release(unmapped)
        entries = mapped(driver, arena, page, 6)
        assert under_test.committed_bytes() == 6 * page
        driver.unmap(entries)
        assert under_test.committed_bytes() == 6 * page
        for _, handle, _ in entries[:2]:
            driver.release(handle)
        assert under_test.committed_bytes() == 4 * page

    def test_unmap_takes_several_neighbours_and_scattered_pages(
        self, driver: _core.Driver, arena: int, page: int
    ) -> None:
        entries = mapped(driver, arena, page, 8)
        driver.unmap([entries[i] for i in (0, 1, 2, 5, 7)])
        driver.map([entries[i] for i in (0, 1, 2, 5, 7)])
        driver.unmap(entries[::-1])
        for _, handle, _ in entries:
            driver.release(handle)
        driver.free_reservation(arena, 16 * page)

    def test_copy_and_zero(self, memory: Memory, driver: _core.Driver, arena: int, page: int) -> None:
        a, b = (entry[0] for entry in mapped(driver, arena, page, 2))
        memory.write(a, bytes(range(256)))
        driver.copy(b, a, 256)
        driver.zero(b + 16, 32)
        driver.wait(driver.record())
        assert memory.read(b, 256) == bytes(range(16)) + bytes(32) + bytes(range(48, 256))

    @pytest.mark.parametrize(
        "touch",
        ["arena", "arena + page", "arena + 2 * page", "arena + 15 * page"],
        ids=["unmapped again", "without access", "never mapped", "the last page"],
    )
    @pytest.mark.parametrize(
        "how", ["ctypes.string_at({}, 1)", "ctypes.memset({}, 1, 1)"], ids=["read", "write"]
    )
    @pytest.mark.usefixtures("memory")
    def test_touching_what_is_not_mapped_kills(
        self, under_test: DriverUnderTest, touch: str, how: str
    ) -> None:
        result = under_test.run_in_child(f"""
            entries = [(arena + i * page, driver.create(page, i * page), page) for i in range(2)]
            driver.map(entries)
            driver.set_access(entries[:1])
            ctypes.memset(arena, 1, page)
            driver.unmap(entries[:1])
            print("before", flush=True)
            {how.format(touch)}
            print("after", flush=True)
        """)
        assert result.stdout == "before\n"
        assert result.returncode < 0

    def test_a_zero_gap_reads_as_zeros_before_and_after(
        self, memory: Memory, driver: _core.Driver, refuses: bool, arena: int, page: int
    ) -> None:
        if not driver.zero_gaps:
            pytest.skip("not a capability of this driver")
        driver.set_gap(arena, 8 * page, True)
        assert memory.read(arena, 8 * page) == bytes(8 * page)
        entries = mapped(driver, arena, page, 2, first=7)
        for entry in entries:
            memory.write(entry[0], b"\x07" * page)
        assert memory.read(arena + 6 * page, 2 * page) == bytes(page) + b"\x07" * page
        driver.unmap(entries)
        assert memory.read(arena + 7 * page, page) == bytes(page)
        driver.map(entries)
        if refuses:
            with pytest.raises(InvalidArgument, match="mapped"):
                driver.set_gap(arena, 8 * page, False)

    @pytest.mark.parametrize(
        "touch",
        [
            "ctypes.memset(arena, 1, 1)",
            "ctypes.string_at(arena + 2 * page, 1)",
            "ctypes.string_at(arena + page, 1)",
        ],
        ids=["written", "beyond it", "set back"],
    )
    def test_outside_a_zero_gap_touching_kills(self, under_test: DriverUnderTest, touch: str) -> None:
        if not under_test.driver.zero_gaps:
            pytest.skip("not a capability of this driver")
        result = under_test.run_in_child(f"""
            driver.set_gap(arena, 2 * page, True)
            driver.set_gap(arena + page, page, False)
            entry = (arena + 2 * page, driver.create(page, 0), page)
            driver.map([entry])
            driver.unmap([entry])
            ctypes.string_at(arena, page)
            print("before", flush=True)
            {touch}
            print("after", flush=True)
        """)
        assert result.stdout == "before\n"
        assert result.returncode < 0

    @pytest.mark.usefixtures("memory")
    def test_a_forked_child_does_not_have_the_memory(self, under_test: DriverUnderTest) -> None:
        result = under_test.run_in_child("""
            entry = (arena, driver.create(page, 0), page)
            driver.map([entry])
            driver.set_access([entry])
            ctypes.memset(arena, 7, page)
            child = os.fork()
            if child == 0:
                ctypes.memset(arena, 9, page)
                os._exit(0)
            _, status = os.waitpid(child, 0)
            print(os.WIFSIGNALED(status), ctypes.string_at(arena, 1))
        """)
        assert result.stdout == "True b'\\x07'\n", result.stderr
