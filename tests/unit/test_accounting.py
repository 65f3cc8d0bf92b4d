"""The kernel's account of our memory is the pool's own."""

from vmm import Pool, _core
from vmm.testing import kernel_account, settle

PAGE = 65536


def agree(pool):
    settle(pool)
    stats = pool.stats()
    account = kernel_account(pool)
    return (account.committed_bytes, account.resident_bytes) == (stats.created_bytes, stats.mapped_bytes)


def test_through_mapping_idling_remapping_and_trimming():
    pool = Pool(64 * PAGE, lookahead_pages=0)
    lease = pool._core.reserve(page_bytes=PAGE, extent_bytes=16 * PAGE, extents=2)
    assert agree(pool)
    lease.map([(0, 5), (16, 7), (9, 1)])
    assert agree(pool)
    del lease
    assert agree(pool)
    assert pool.stats().mapped_bytes == 13 * PAGE
    other = pool._core.reserve(page_bytes=PAGE, extent_bytes=60 * PAGE, extents=1)
    other.map([(0, 60)])
    assert agree(pool)
    assert pool.stats().created_bytes <= 64 * PAGE
    other.unkeep([(0, 30)])
    pool.trim(20 * PAGE)
    assert agree(pool)


def test_extents_that_grow_side_by_side_cost_few_mappings():
    """256 extents of 64 pages, a page each in turn: 16,384 pages in a run an extent, fresh and remapped."""
    pool = Pool(20_000 * 4096, lookahead_pages=0)
    for extent_pages in (256, 512):  # the second cannot adopt the first: its pages come from recycled runs
        lease = pool._core.reserve(page_bytes=4096, extent_bytes=extent_pages * 4096, extents=256)
        growth = _core.Growth(pool._core, [(lease, 0, 256, 4096)])
        for length in range(1, 65):
            growth.advance(length)
        account = kernel_account(pool)
        assert account.resident_bytes >= 16_384 * 4096
        assert account.mappings <= 2 * 256  # some of the first are still there, idle
        del growth, lease
    pool.check()
