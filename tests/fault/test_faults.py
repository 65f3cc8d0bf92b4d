"""Every driver call of every scenario is made to fail once, in turn, until none is left to fail.

After each failure: an exception of ours or a call that coped, tables that agree, nothing leaked, and the same
scenario succeeds when it is run again. The method is SQLite's (https://www.sqlite.org/testing.html, §3).
"""

import ctypes
import re
from pathlib import Path

import pytest
import tally
from core_pool import settle

from vmm import Error, _core

PAGE = 65536
FAULT_DRIVER = Path(__file__).parents[2] / "csrc" / "driver" / "fault_driver.cpp"
# Made as a pool begins and ends, when nobody can make them fail; test_cuda_faults.py can, a layer below.
OUT_OF_REACH = {"reserve", "free_reservation"}
# The host driver makes none of these: test_cuda_faults.py, and tests/unit/parking.cpp on the stand-in.
OUT_OF_REACH |= {"allocate_host", "release_host", "copy_out", "copy_in", "finish"}
failed_calls: set[str] = set()


def make_pool(pages):
    return _core.Pool(pages * PAGE, arena_bytes=1 << 30, pager_thread=False, faults=True)


def reserve(pool, pages, extents=1, **options):
    return pool.reserve(page_bytes=PAGE, extent_bytes=pages * PAGE, extents=extents, **options)


# A scenario: (budget in pages, prepare(pool) -> state, act(pool, state) -> whatever must live on).


def _fresh(pool, lease):
    lease.map([(0, 4), (8, 4)])
    ctypes.memset(lease.address, 1, 4 * PAGE)


def _idle_then_reserve(pool):
    old = reserve(pool, 8)
    old.map([(0, 8)])
    ctypes.memset(old.address, 0xEE, 8 * PAGE)
    del old
    return reserve(pool, 16, kind=1)


def _remap_for_another_kind(pool, lease):
    lease.map([(0, 8)])
    assert ctypes.string_at(lease.address, 8 * PAGE) == bytes(8 * PAGE)


def _growth(pool):
    leases = [reserve(pool, 4, extents=2) for _ in range(2)]
    return [_core.Growth(pool, [(lease, 0, 2, 256)]) for lease in leases]


def _admit_and_grow(pool, growths):
    _core.admit(growths, 300)
    settle(pool)
    for growth in growths:
        assert growth.advance(300) == 512


def _mapped(pool):
    lease = reserve(pool, 16)
    lease.map([(0, 16)])
    return lease


def _retire(pool, lease):
    pool.step()
    lease.retire([(0, 16)])
    pool.end()
    settle(pool)
    lease.map([(0, 16)])


def _trim(pool, lease):
    lease.unkeep([(4, 12)])
    pool.trim(12 * PAGE)
    lease.map([(0, 16)])


def _exhaust_addresses(pool):
    old = pool.reserve(page_bytes=PAGE, extent_bytes=(1 << 29) + PAGE)
    old.map([(0, 2)])
    # the reservation is idle now


def _reserve_what_idles(pool, _):
    lease = pool.reserve(page_bytes=PAGE, extent_bytes=(1 << 29) + 2 * PAGE)
    lease.map([(0, 1)])
    return lease


def _touch_a_zeroed_one(pool, _):
    lease = reserve(pool, 4, zeroed=True)
    lease.map([(1, 2)])
    assert ctypes.string_at(lease.address, 4 * PAGE) == bytes(4 * PAGE)


def _warm_and_map(pool, lease):
    pool.warm(12 * PAGE, PAGE, 1 << 62)
    lease.map([(0, 16)])


def _copy_on_a_stream(pool, state):
    lease, stream = state
    pool.copy(lease.address, lease.address + 8 * PAGE, 8 * PAGE, stream)
    pool.synchronize(stream)


def _blocks(pool):
    """Two stretches of blocks of a third of a page, the second from the middle of a page on."""
    made = _core.Range(pool, size=20 * PAGE, page_bytes=PAGE, zeroed=True)
    return made, made.blocks([0, 10 * PAGE + PAGE // 2], PAGE // 3, 24)


def _use_blocks(pool, state):
    _, blocks = state
    blocks.announce([0, 1, 2, 9])
    settle(pool)
    blocks.keep([1, 9])
    pool.step()
    blocks.drop([0, 9], unmap=True)
    pool.end()
    settle(pool)
    blocks.keep([4, 9, 20])
    blocks.drop(list(range(24)))


def _keep_blocks(pool, state):
    made, blocks = state
    before = blocks.kept
    try:
        blocks.keep([1, 2, 5, 20])
    except Error:
        assert blocks.kept == before
        raise
    ctypes.memset(made.lease.address + PAGE // 3, 1, 2 * PAGE // 3)


SCENARIOS = {
    "map fresh pages": (16, lambda pool: reserve(pool, 12), _fresh),
    "remap pages of another kind": (8, _idle_then_reserve, _remap_for_another_kind),
    "grow with the pager": (32, _growth, _admit_and_grow),
    "retire and map again": (16, _mapped, _retire),
    "trim and map again": (16, _mapped, _trim),
    "take idle addresses": (16, _exhaust_addresses, _reserve_what_idles),
    "touch a zeroed reservation": (16, lambda pool: None, _touch_a_zeroed_one),
    "warm and map": (16, lambda pool: reserve(pool, 16), _warm_and_map),
    "announce, keep and drop blocks": (16, _blocks, _use_blocks),
    "keep blocks": (16, _blocks, _keep_blocks),
    "copy on a stream": (16, lambda pool: (_mapped(pool), pool.create_stream()), _copy_on_a_stream),
}

ONE_CALL = ("map fresh pages", "remap pages of another kind", "keep blocks")  # must be all or nothing


@pytest.mark.parametrize("out_of_memory", [False, True], ids=["error", "out-of-memory"])
@pytest.mark.parametrize("times", [1, 3], ids=["once", "three-times"])
@pytest.mark.parametrize("name", sorted(SCENARIOS))
def test_every_failure_is_survived(name, times, out_of_memory):
    budget, prepare, act = SCENARIOS[name]

    def attempt(n):
        pool = make_pool(budget)
        state = prepare(pool)
        pool.fail_at(n, times, out_of_memory)
        kept = pool.stats()["kept_bytes"]
        try:
            act(pool, state)
        except Error:
            if name in ONE_CALL:
                assert pool.stats()["kept_bytes"] == kept
        failed = pool.last_failed
        pool.check()
        pool.fail_at(0, 0)
        pool.end()  # an epoch whose end failed is still open
        settle(pool)
        act(pool, state)  # the next attempt succeeds
        pool.check()
        del state
        tally.end(pool, pool.memfd)
        if failed:
            failed_calls.add(failed.split(" ")[0])
        return failed

    tally.each_failure(attempt, least=1)


def test_every_kind_of_call_was_failed():
    """Runs last in this file: what the scenarios reached."""
    if not failed_calls:
        pytest.skip("run together with the scenarios")
    can_fail = set(re.findall(r'fail\("(\w+)"\)', FAULT_DRIVER.read_text()))
    assert can_fail > OUT_OF_REACH
    tally.unreached["host"] = sorted(can_fail - OUT_OF_REACH - failed_calls)
    assert not tally.unreached["host"]
