"""vmm.Pool, the part of it that is Python."""

import ctypes.util
import logging
import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import cuda_standin
import pytest
from core_pool import settle

import vmm
from child import run_child
from vmm import Closed, InvalidArgument, OutOfPages, Pool, _core, default_pool

PAGE = 65536


def map_pages(pool, pages):
    lease = pool._core.reserve(page_bytes=PAGE, extent_bytes=pages * PAGE, extents=1)
    lease.map([(0, pages)])
    return lease


@pytest.mark.parametrize("bad", ["12 XB", "", 0, -1, 2**61, "900TiB", 3.5, True])
def test_bad_budgets_name_the_argument(bad):
    with pytest.raises(InvalidArgument, match="budget"):
        Pool(bad)


@pytest.mark.host_only
def test_bad_device_and_lookahead():
    for device in ("tpu", "cuda:x", "cpu:1", None, -1):
        with pytest.raises(InvalidArgument, match="device"):
            Pool("1MiB", device=device)
    for lookahead in (-1, 2**16, 1.5, True, "1", None):
        with pytest.raises(InvalidArgument, match="lookahead_pages is"):
            Pool("1MiB", lookahead_pages=lookahead)


@pytest.mark.skipif(ctypes.util.find_library("cuda") is not None, reason="there is a CUDA driver here")
def test_without_a_cuda_driver_there_is_no_cuda_pool():
    result = run_child("""
        import vmm
        for make in (lambda: vmm.Pool("1MiB", device="cuda"), lambda: vmm.KVTensor(2, 8, device="cuda")):
            try:
                make()
            except vmm.DriverError as error:
                print(error)
    """)
    assert result.stdout.count("no CUDA driver: libcuda.so.1") == 2, result.stderr


def test_the_environment_sets_the_default_budget(monkeypatch):
    monkeypatch.setenv("VMM_BUDGET", "3MiB")
    assert Pool().budget_bytes == 3 * 2**20
    monkeypatch.setenv("VMM_BUDGET", "much")
    with pytest.raises(InvalidArgument, match="VMM_BUDGET"):
        Pool()


@pytest.mark.host_only
def test_the_default_budget_is_a_part_of_what_is_available(monkeypatch):
    monkeypatch.delenv("VMM_BUDGET", raising=False)
    monkeypatch.setattr("vmm.budgets.available_bytes", lambda: 2**30)
    assert Pool().budget_bytes == 2**29


def test_a_budget_can_be_lowered_on_a_full_machine(monkeypatch):
    pool = Pool(32 * PAGE)
    lease = map_pages(pool, 10)
    free = "vmm.budgets.available_bytes" if pool._ordinal < 0 else "vmm._core.Pool.device_free_bytes"
    monkeypatch.setattr(free, lambda *_: 0)
    pool.budget_bytes = 20 * PAGE
    with pytest.raises(InvalidArgument, match="budget"):
        pool.budget_bytes = 21 * PAGE
    pool.budget_bytes = 5 * PAGE
    pool.budget_bytes = 10 * PAGE  # as much as it holds
    assert lease.mapped_bytes == 10 * PAGE


@pytest.mark.parametrize("bad", [0, -1, 1e-9, 2e9, float("nan"), "60", True])
def test_bad_idle_times(bad):
    with pytest.raises(InvalidArgument, match="idle_seconds is"):
        Pool("1MiB", idle_seconds=bad)


def test_what_idles_is_given_back_by_itself():
    with Pool(32 * PAGE, idle_seconds=0.001) as pool, Pool(32 * PAGE, idle_seconds=None) as other:
        used, keeps = map_pages(pool, 4), map_pages(other, 8)
        idle = map_pages(pool, 8)
        del idle, keeps
        while pool.stats().created_bytes > 4 * PAGE:
            time.sleep(0.001)  # the pager does it
        assert used.mapped_bytes == 4 * PAGE
        assert other.stats().mapped_bytes == 8 * PAGE


def test_the_default_pool_is_remade_after_close():
    first = default_pool()
    assert default_pool() is first
    first.close()
    assert default_pool() is not first


def test_the_budget_binds_and_the_figures_say_so():
    pool = Pool(8 * PAGE)
    lease = map_pages(pool, 6)
    with pytest.raises(OutOfPages) as caught:
        map_pages(pool, 3)
    error = caught.value
    assert isinstance(error, MemoryError)
    assert (error.asked, error.free, error.reclaimable, error.budget) == (3 * PAGE, 2 * PAGE, 0, 8 * PAGE)
    del lease
    map_pages(pool, 3)


def test_a_lowered_budget_gives_memory_back_while_running():
    pool = Pool(32 * PAGE)
    idle = map_pages(pool, 24)
    used = map_pages(pool, 4)
    del idle
    pool.budget_bytes = 8 * PAGE
    while pool.stats().created_bytes > 8 * PAGE:
        pass  # the pager does it
    assert used.mapped_bytes == 4 * PAGE
    pool.check()


@pytest.mark.host_only
def test_trim_gives_back_what_nobody_needs():
    pool = Pool(32 * PAGE)
    used, idle = map_pages(pool, 4), map_pages(pool, 8)
    del idle
    assert pool.trim("128KiB") == 2 * PAGE
    assert pool.trim() == 6 * PAGE
    assert os.fstat(pool._core.memfd).st_blocks * 512 == used.mapped_bytes == 4 * PAGE


def test_what_is_warm_need_not_be_created_again():
    pool = Pool("64MiB")
    assert pool.warm("16MiB") == 2**24
    assert pool.warm(2**24) == 0
    before = pool.stats()
    assert before.free_bytes == before.created_bytes == 2**24
    lease = pool._core.reserve(page_bytes=pool.default_page_bytes, extent_bytes=2**24, extents=1)
    lease.map([(0, 2**24 // pool.default_page_bytes)])
    assert pool.stats().pages_created == before.pages_created
    assert lease.mapped_bytes == 2**24
    pool.check()
    del lease
    assert pool.trim() == 2**24


def test_warm_is_as_much_as_the_budget_has_left():
    pool = Pool(64 * PAGE)
    lease = map_pages(pool, 48)
    assert pool.warm(64 * PAGE, page_bytes=PAGE) == 16 * PAGE
    assert pool.warm(64 * PAGE, page_bytes=PAGE) == 0
    assert lease.mapped_bytes == 48 * PAGE
    pool.check()


@pytest.mark.parametrize("bad", ["12 XB", "", 0, -1, 2**63, 3.5, True, None])
def test_bad_sizes_of_what_is_to_be_warm(bad):
    pool = Pool("1MiB")
    with pytest.raises(InvalidArgument, match="wanted"):
        pool.warm(bad)
    assert pool.stats().created_bytes == 0


def test_bad_uses_of_warm():
    pool = Pool("64MiB")
    with pytest.raises(InvalidArgument, match=r"wanted is 64.1 MiB; expected at most 64.0 MiB, the budget"):
        pool.warm(2**26 + 2**17)
    for page_bytes in (1000, 3 * 2**21, 0, "x"):
        with pytest.raises(InvalidArgument, match="page_bytes"):
            pool.warm("1MiB", page_bytes=page_bytes)
    pool.close()
    with pytest.raises(Closed):
        pool.warm("1MiB")
    assert pool.stats().created_bytes == 0


def test_others_run_while_memory_is_made_warm():
    """While a page is being created, on the stand-in."""
    page, seen, inside, mapped = 2**21, [], threading.Event(), threading.Event()
    standin = cuda_standin.loaded()
    core = _core.Pool(
        32 * page, arena_bytes=1 << 32, pager_thread=False, cuda_device=0, cuda_host_accessible=True
    )
    with Pool._over(core) as pool, ThreadPoolExecutor(1) as worker:

        def in_the_driver():
            inside.set()
            seen.append(mapped.wait(20))

        standin.before("cuMemCreate", in_the_driver)
        job = worker.submit(pool.warm, 16 * page, page_bytes=page)
        assert inside.wait(20)
        lease = pool._core.reserve(page_bytes=page, extent_bytes=4 * page, extents=1)
        lease.map([(0, 4)])
        mapped.set()
        assert job.result() == 16 * page
        assert seen == [True]  # else the map waited for the whole of it
        assert lease.mapped_bytes == 4 * page
        pool.check()
        del lease
        settle(core)


def test_use_after_close():
    pool = Pool(32 * PAGE)
    lease = map_pages(pool, 4)
    pool.close()
    pool.close()
    assert pool.closed
    assert "closed" in repr(pool)
    with pytest.raises(Closed):
        map_pages(pool, 1)
    for budget in (16 * PAGE, "bad"):
        with pytest.raises(Closed):
            pool.budget_bytes = budget
    assert pool.budget_bytes == 32 * PAGE
    with pytest.raises(Closed):
        lease.map([(0, 4), (0, 1)])
    del lease
    assert pool.stats().created_bytes == 0


def test_many_pools_fit_into_the_address_space():
    pools = [Pool("1MiB") for _ in range(50)]
    assert all(pool.stats().budget_bytes == 2**20 for pool in pools)
    for pool in pools:
        pool.close()


def test_with_closes():
    with Pool("1MiB") as pool:
        pass
    assert pool.closed


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"page_bytes": 1000}, "page_bytes"),
        ({"page_bytes": 0}, "page_bytes"),
        ({"page_bytes": 3 * 4096}, "page_bytes"),
        ({"extent_bytes": PAGE + 1}, "extent_bytes"),
        ({"extent_bytes": 0}, "extent_bytes"),
        ({"extents": 0}, "extents"),
        ({"extents": 2**60}, "extents"),
        ({"page_bytes": 4096, "extents": 2**26}, "address space"),
    ],
)
def test_bad_shapes_are_refused(arguments, words):
    pool = Pool("1MiB")
    with pytest.raises(InvalidArgument, match=words):
        pool._core.reserve(**{"page_bytes": PAGE, "extent_bytes": 2**20, "extents": 1, **arguments})
    assert pool.stats().reservations_leased == 0


def test_ranges_outside_the_reservation_are_refused():
    pool = Pool("1MiB")
    lease = map_pages(pool, 2)
    for ranges in ([(2, 1)], [(0, 3)], [(4_000_000_000, 1)], [(1, 2**63)]):
        with pytest.raises(InvalidArgument, match="ranges"):
            lease.map(ranges)
    assert lease.mapped_bytes == 2 * PAGE


def test_the_pager_speaks_through_logging(caplog):
    pool = Pool(4 * PAGE)
    core = vmm._core.Pool(4 * PAGE, pager_thread=False, faults=True)
    pool._core = core
    lease = map_pages(pool, 4)
    core.fail_at(1)
    lease.retire([(0, 4)])
    core.poll()
    with caplog.at_level(logging.WARNING, logger="vmm"):
        pool.stats()
    assert "injected failure of unmap" in caplog.text
