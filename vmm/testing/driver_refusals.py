"""The driver contract: broken rules, which are refused with nothing changed."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from vmm import _core
from vmm.errors import InvalidArgument
from vmm.testing.drivers import DriverUnderTest, Entry, mapped


def _release_twice(driver: _core.Driver, arena: int, page: int, entry: Entry) -> None:
    driver.unmap([entry])
    driver.release(entry[1])
    driver.release(entry[1])


# Each is a call (with the driver, an arena of 16 pages, the page size and the entry of the one page mapped
# there) and words of the refusal.
_REFUSALS: dict[str, tuple[Callable[[_core.Driver, int, int, Entry], object], str]] = {
    "reserve nothing": (lambda d, a, p, e: d.reserve(0, p), "size"),
    "reserve a part of a granule": (lambda d, a, p, e: d.reserve(p + 1, p), "size"),
    "odd alignment": (lambda d, a, p, e: d.reserve(p, 3 * p), "alignment"),
    "free a part": (lambda d, a, p, e: d.free_reservation(a, 8 * p), "size"),
    "free what is mapped": (lambda d, a, p, e: d.free_reservation(a, 16 * p), "mapped"),
    "create a part of a granule": (lambda d, a, p, e: d.create(p + 1, 64 * p), "page_bytes"),
    "a gap where a page is": (lambda d, a, p, e: d.set_gap(a, 2 * p, True), "mapped"),
    "a gap outside": (lambda d, a, p, e: d.set_gap(a + 8 * p, 16 * p, True), "reservation"),
    "create nothing": (lambda d, a, p, e: d.create(0, 64 * p), "page_bytes"),
    "create where a page is": (lambda d, a, p, e: d.create(p, 0), "place"),
    "release what is mapped": (lambda d, a, p, e: d.release(e[1]), "mapped"),
    "release twice": (_release_twice, "page"),
    "map over a page": (lambda d, a, p, e: d.map([(a, d.create(p, 64 * p), p)]), "already"),
    "map a part": (lambda d, a, p, e: d.map([(a + p, e[1], p // 2)]), "whole"),
    "map unaligned": (lambda d, a, p, e: d.map([(a + p // 2, e[1], p)]), "multiple"),
    "map outside": (lambda d, a, p, e: d.map([(a + 16 * p, e[1], p)]), "reservation"),
    "map beyond all addresses": (lambda d, a, p, e: d.map([(2**64 - p, e[1], p)]), "reservation"),
    "map no page": (lambda d, a, p, e: d.map([(a + p, 12345 * p, p)]), "page"),
    "access a hole": (lambda d, a, p, e: d.set_access([(a + p, e[1], p)]), "mapping"),
    "unmap a hole": (lambda d, a, p, e: d.unmap([(a + p, e[1], p)]), "mapping"),
    "unmap another page": (lambda d, a, p, e: d.unmap([(a, d.create(p, 64 * p), p)]), "another"),
    "unmap a part": (lambda d, a, p, e: d.unmap([(a, e[1], p // 2)]), "another page"),
    "unmap one twice": (lambda d, a, p, e: d.unmap([e, e]), "twice"),
    "zero a hole": (lambda d, a, p, e: d.zero(a, 2 * p), "ranges"),
    "zero beyond all addresses": (lambda d, a, p, e: d.zero(a + 8 * p, 2**64 - a - 8 * p), "ranges"),
    "copy to a hole": (lambda d, a, p, e: d.copy(a + p, a, p), "to"),
    "copy from a hole": (lambda d, a, p, e: d.copy(a, a + p, p), "from"),
    "destroy the default stream": (lambda d, a, p, e: d.destroy_stream(0), "stream"),
    "an unknown stream": (lambda d, a, p, e: d.zero(a, p, 99), "stream"),
}


class RefusalContract:
    @pytest.mark.usefixtures("only_checked")
    @pytest.mark.parametrize("case", sorted(_REFUSALS))
    def test_every_broken_rule_is_refused(
        self, case: str, under_test: DriverUnderTest, driver: _core.Driver, arena: int, page: int
    ) -> None:
        call, words = _REFUSALS[case]
        if case == "an unknown stream" and driver.foreign_streams:
            pytest.skip("undefined where streams may be anybody's")
        if case == "create where a page is" and not driver.merges_neighbours:
            pytest.skip("pages have no places here")
        if "gap" in case and not driver.zero_gaps:
            words = "capability"
        [entry] = mapped(driver, arena, page, 1)
        memory = under_test.memory if driver.host_accessible else None
        if memory:
            memory.write(entry[0], b"untouched")
        with pytest.raises(InvalidArgument, match=words):
            call(driver, arena, page, entry)
        if case == "release twice":
            return
        driver.set_access([entry])  # would be refused, were it not mapped still
        if memory:
            assert memory.read(entry[0], 9) == b"untouched"

    @pytest.mark.usefixtures("only_checked")
    def test_a_batch_with_one_bad_entry_maps_none(self, driver: _core.Driver, arena: int, page: int) -> None:
        good = (arena, driver.create(page, 0), page)
        with pytest.raises(InvalidArgument):
            driver.map([good, (arena + 99 * page, good[1], page)])
        driver.map([good])  # would be refused, were it mapped
