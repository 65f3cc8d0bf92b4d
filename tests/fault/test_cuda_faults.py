"""Every call to libcuda that our driver makes, made to fail in turn, on the stand-in.

As tests/fault/test_faults.py, a layer below: here the CUDA driver's own undoing is put to the test, and each
(function, place in our code) that a scenario reaches must have been failed.
"""

import gc
from collections import Counter

import cuda_standin
import pytest
from core_pool import settle

from vmm import Error, _core

PAGE = 65536
OUT_OF_MEMORY, UNKNOWN = 2, 999
injected: Counter[str] = Counter()


@pytest.fixture
def standin():
    found = cuda_standin.configured(granularity=PAGE)
    gc.collect()
    found.fail_only("_core")
    found.set(site_depth=1)
    yield found
    found.set(site_depth=2, undefined_counts=0)
    found.fail_at(0)
    found.fail_only("")


def _open(scenario_pages=32):
    return _core.Pool(
        scenario_pages * PAGE,
        arena_bytes=1 << 30,
        pager_thread=False,
        cuda_device=0,
        cuda_host_accessible=True,
    )


def _rows(pool, tokens=64):
    """64 tokens of half a page in each of two rows."""
    return _core.Rows(
        pool, rows=2, tokens=tokens, record_bytes=PAGE // 2, page_bytes=PAGE, type_code=1, type_bits=8
    )


def _insist(work):
    for _ in range(5):
        try:
            return work()
        except Error:
            continue
    raise AssertionError("fails for good")


def make_and_end(pool):
    _open().close()


def grow_and_release(pool):
    rows = _rows(pool)
    for end in (1, 6, 20):
        rows.touch(0, (end * PAGE // 2,), (1,))
    rows.release(3, 20)
    settle(pool)
    rows.touch(0, (12 * PAGE // 2,), (1,))


def copy_on_a_stream(pool):
    rows = _rows(pool)
    rows.reserve(8)
    stream = pool.create_stream()
    base = pool.reserve(page_bytes=PAGE, extent_bytes=4 * PAGE)
    base.map([(0, 4)])
    try:
        pool.copy(base.address, base.address + 2 * PAGE, PAGE, stream)
        pool.step(stream)
        base.retire([(0, 2)])
        pool.end(stream)
        pool.synchronize(stream)
    finally:
        _insist(lambda: pool.destroy_stream(stream))
    settle(pool)


def make_room(pool):
    old = pool.reserve(page_bytes=PAGE, extent_bytes=24 * PAGE)
    old.map([(0, 24)])
    del old
    new = pool.reserve(page_bytes=PAGE, extent_bytes=16 * PAGE)
    new.map([(0, 7), (9, 7)])  # in two stretches
    pool.trim(1 << 40)


def map_after_a_failure(pool):
    lease = pool.reserve(page_bytes=PAGE, extent_bytes=8 * PAGE)
    _insist(lambda: lease.map([(0, 8)]))


def end_with_work_under_way(pool):
    other = _open()
    stream = other.create_stream()
    other.step(stream)
    other.end(stream)
    other.close()


def ask_for_free_memory(pool):
    assert _core.cuda_free_bytes(0) > 0


SCENARIOS = (
    make_and_end,
    grow_and_release,
    copy_on_a_stream,
    make_room,
    map_after_a_failure,
    end_with_work_under_way,
    ask_for_free_memory,
)


def _leaks(standin, before):
    return {name: what for name, what in standin.live().items() if what != before[name]}


@pytest.mark.parametrize("times", [1, 2, 4], ids=["once", "twice", "four-times"])  # the undoing fails, too
@pytest.mark.parametrize("code", [UNKNOWN, OUT_OF_MEMORY], ids=["error", "out-of-memory"])
@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario.__name__)
def test_every_failure_is_survived(standin, scenario, code, times):
    gc.collect()
    standin.set(undefined_counts=times > 1)  # what a failed undoing left behind goes with the context
    before = standin.live()
    for n in range(1, 500):
        pool = _open()
        standin.failed()
        standin.fail_at(n, code, times)
        try:
            scenario(pool)
        except Error as error:
            assert "cuda" in str(error).lower() or "pages" in str(error)
        failures, failed = standin.failed(), standin.last_failed
        standin.fail_at(0)
        pool.check()
        pool.end()
        settle(pool)
        scenario(pool)  # the next attempt succeeds
        settle(pool)
        pool.check()
        pool.close()
        pool.trim(1 << 40)
        assert pool.stats()["created_bytes"] == 0
        assert pool.budget.taken_bytes == 0
        del pool
        if times == 1:
            assert not _leaks(standin, before), failed
        before = standin.live()
        if not failures:
            assert n > 1
            return
        injected[failed.split(" ")[0]] += failures
    raise AssertionError("the scenario does not end")


def test_every_call_site_was_failed(standin):
    """Runs last in this file: what the scenarios reached of our code."""
    if not injected:
        pytest.skip("run together with the scenarios")
    sites = [site for site in standin.sites() if "_core" in site["site"]]
    unreached = sorted({f"{site['function']} at {site['site']}" for site in sites if not site["failed"]})
    print(f"\n{sum(injected.values())} injected failures of CUDA calls: {dict(injected)}")
    print(f"0 leaks, 0 aborts, {len(unreached)} call sites unreached", *unreached, sep="\n")
