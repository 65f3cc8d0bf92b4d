"""append, length, reserve, truncate, release, close: what stays, what is given back, and when."""

import gc

import pytest
import torch

from vmm import Closed, KVTensor, Pool, configure, default_pool
from vmm.testing import kernel_account, settle

PAGE = 4096


@pytest.fixture
def pool():
    with Pool("64MiB", lookahead_pages=0) as pool:
        yield pool
        pool.check()


def some(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def assert_returned(pool, bytes_left=0):
    gc.collect()
    settle(pool, still_seconds=0.01)
    assert pool.stats().kept_bytes == bytes_left
    assert pool.stats().mapped_bytes == bytes_left
    assert kernel_account(pool).resident_bytes == bytes_left
    pool.check()


def test_append_goes_on_where_the_last_write_ended(make):
    t, expected = make(2, 500, 3, 7), torch.zeros(2, 500, 3, 7)
    at = 0
    for count in (1, 0, 40, 7, 200):
        x = some(2, count, 3, 7, seed=count)
        t.append(x)
        expected[:, at : at + count] = x
        at += count
        assert t.length == at
    t[0, 300:302] = 5.0
    expected[0, 300:302] = 5.0
    assert t.length == 302
    t.append(torch.ones(2, 1, 3, 7))
    expected[:, 302] = 1
    assert torch.equal(t[:, :303], expected[:, :303])
    assert torch.equal(t.clone(), expected)


def test_append_of_strided_broadcast_and_kv_tensors(make):
    t = make(2, 50, 3)
    t.append(some(2, 3, 4).transpose(1, 2))
    t.append(torch.ones(1, 1, 1).expand(2, 5, 3))
    other = make(2, 6, 3)
    other[...] = 7.0
    t.append(other)
    expected = torch.cat([some(2, 3, 4).transpose(1, 2), torch.ones(2, 5, 3), torch.full((2, 6, 3), 7.0)], 1)
    assert torch.equal(t[:, :15], expected)


@pytest.mark.parametrize("grow_dim", [0, 1, 2, -1])
def test_any_dimension_may_grow(make, grow_dim):
    shape = [3, 4, 5]
    shape[grow_dim] = 2000
    t = make(*shape, grow_dim=grow_dim)
    parts = []
    for count in (3, 1, 30):
        shape[grow_dim] = count
        parts.append(some(*shape, seed=count))
        t.append(parts[-1])
    assert torch.equal(t.narrow(grow_dim, 0, 34), torch.cat(parts, grow_dim))
    assert t.mapped_bytes <= 20 * 2 * PAGE


def test_memory_goes_where_it_was_touched_and_comes_back(pool, make):
    t = make(2, 100_000, 16)  # 64 bytes a token; a row is 1562.5 pages
    assert t.mapped_bytes == 0
    t.append(some(2, 640, 16))  # 10 pages a row; the second row begins in the middle of one
    assert t.mapped_bytes == 21 * PAGE
    assert kernel_account(pool).resident_bytes == 21 * PAGE
    t.truncate(64)
    assert t.length == 64
    settle(pool, still_seconds=0.01)
    assert t.mapped_bytes == 3 * PAGE
    t.truncate(0)
    assert_returned(pool)
    assert t.length == 0
    t.append(some(2, 5, 16))
    assert torch.equal(t[:, :5], some(2, 5, 16))
    t.close()
    assert_returned(pool)


def test_reserve_maps_without_making_tokens(pool, make):
    t = make(2, 1000, 16)
    t.reserve(100)
    mapped = t.mapped_bytes
    assert mapped >= 2 * 100 * 64
    assert t.length == 0
    stalls = pool.stats().stalls
    t.append(some(2, 100, 16))
    assert (pool.stats().stalls, t.mapped_bytes) == (stalls, mapped)
    t.reserve(10)
    t.reserve(0)
    assert t.mapped_bytes == mapped
    t.truncate(100)  # what was reserved beyond goes
    t.reserve(1000)
    t.truncate(100)
    settle(pool, still_seconds=0.01)
    assert t.mapped_bytes == mapped
    assert torch.equal(t[:, :100], some(2, 100, 16))


def test_neighbours_in_a_page_are_never_lost(pool, make):
    """Rows of 30 bytes: 136 of them in a page."""
    t, expected = make(1000, 5, 3, dtype=torch.int16), torch.zeros(1000, 5, 3, dtype=torch.int16)
    x = torch.arange(1000 * 4 * 3, dtype=torch.int16).view(1000, 4, 3)
    t.append(x)
    expected[:, :4] = x
    t.release(0, 1)
    t.release(2, 4)
    settle(pool, still_seconds=0.01)
    assert torch.equal(t[:, 1], expected[:, 1])
    t[7, 4:] = 9
    t.truncate(2)
    assert torch.equal(t[:, 1:2], expected[:, 1:2])
    t.release(0, 5)
    assert_returned(pool)


def test_a_window_that_slides(pool, make):
    t, keep = make(2, 10_000, 64), 100  # 16 tokens a page
    for at in range(0, 3000, 100):
        t.append(torch.full((2, 100, 64), float(at)))
        t.release(0, max(0, t.length - keep))
        assert torch.equal(t[:, at : at + 100], torch.full((2, 100, 64), float(at)))
    settle(pool, still_seconds=0.01)
    assert t.length == 3000
    assert t.mapped_bytes <= 2 * 8 * PAGE


@pytest.mark.parametrize("let_go", ["truncate", "release", "close", "del"])
def test_slices_taken_before_keep_their_bytes(pool, make, let_go):
    t = make(3, 1000, 16)
    x = some(3, 300, 16)
    t.append(x)
    whole, part, column = t[:, :300], t[1:, 100:200], t[:, 250]
    views = [whole[0].t(), part.transpose(0, 1), column.detach()]
    if let_go == "truncate":
        t.truncate(0)
        t.append(torch.zeros(3, 0, 16))
    elif let_go == "release":
        t.release(0, 1000)
    elif let_go == "close":
        t.close()
    else:
        del t
    settle(pool, still_seconds=0.01)
    assert torch.equal(whole, x)
    assert torch.equal(views[1], x[1:, 100:200].transpose(0, 1))
    part.mul_(2)  # nobody else has the memory
    assert torch.equal(whole[1:, 100:200], 2 * x[1:, 100:200])
    del whole
    settle(pool, still_seconds=0.01)
    assert torch.equal(views[2], x[:, 250])
    assert torch.equal(views[0], x[0].t())
    del part, column, views
    assert_returned(pool)


def test_a_slice_of_memory_that_is_used_again_shows_the_new_tokens(pool, make):
    t = make(1, 1000, 16)
    t.append(some(1, 100, 16))
    view = t[:, :100]
    t.truncate(0)
    t.append(torch.ones(1, 100, 16))
    assert view.eq(1).all()  # the same addresses, as with torch.empty
    del view
    assert t[:, :100].eq(1).all()
    t.truncate(0)
    assert_returned(pool)


def test_close(pool, make):
    t = make(2, 100, 4)
    t.append(some(2, 10, 4))
    address, view = t.data_ptr(), t.transpose(0, 1)
    t.close()
    t.close()
    uses = [
        lambda: t[:, :1], lambda: t[0], lambda: t.append(some(2, 1, 4)), lambda: t.truncate(0), t.sum, t.half,
        lambda: t.release(0, 1), lambda: t.reserve(1), lambda: t + 1, t.clone, t.zero_, lambda: view[:3] + 1,
        lambda: t.__setitem__((0, 0), 1), lambda: t[torch.tensor([0])], lambda: t.view(-1), lambda: list(t),
        lambda: t.copy_(torch.ones(2, 100, 4)), t._memory.__reduce__,
    ]  # fmt: skip
    for use in uses:
        with pytest.raises(Closed, match=r"this (KVT|t)ensor is closed"):
            use()
    assert (t.shape, t.data_ptr(), t.length) == ((2, 100, 4), address, 10)
    assert "closed" in repr(t)
    assert_returned(pool)


def test_the_context_manager_closes(pool):
    with KVTensor(2, 10, pool=pool) as t:
        t[:, :3] = 1
    with pytest.raises(Closed):
        t[:, :3]
    assert_returned(pool)


def test_a_closed_pool_under_a_live_tensor(make, pool):
    t = make(2, 5000, 16)
    t.append(some(2, 100, 16))
    view = t[:, :64]
    pool.close()
    assert torch.equal(t[:, :100], some(2, 100, 16))
    t[:, 50] = 3.0
    assert view[0, 50].eq(3).all()
    length, mapped = t.length, t.mapped_bytes
    uses = [
        lambda t=t: t.append(some(2, 2000, 16)),
        lambda t=t: t[:, :4000],
        lambda t=t: t.reserve(5000),
        t.sum,
    ]
    for use in uses:
        with pytest.raises(Closed):
            use()
    assert (t.length, t.mapped_bytes) == (length, mapped)
    with pytest.raises(Closed):
        make(2, 10)
    t.truncate(64)
    assert t[:, 50].eq(3).all()
    del t, use, uses
    assert view[0, 50].eq(3).all()


def test_the_memory_of_a_closed_pool_is_given_back_with_the_tensor(make, pool):
    t = make(2, 5000, 16)
    t.append(some(2, 100, 16))
    pool.close()
    del t
    gc.collect()
    assert pool.stats().created_bytes == 0


def test_pages_released_token_by_token_are_given_back(pool, make):
    t = make(1, 10_000, 16)  # 64 tokens a page
    t.append(some(1, 1000, 16))
    for token in range(640):
        t.release(token, token + 1)
    settle(pool, still_seconds=0.01)
    assert t.mapped_bytes == 6 * PAGE


def test_the_default_pool_is_remade():
    configure(budget="16MiB")
    try:
        a = KVTensor(1, 1000)
        a.append(torch.ones(1, 10))
        first = default_pool()
        first.close()
        b = KVTensor(1, 1000)
        b.append(torch.full((1, 10), 2.0))
        assert default_pool() is not first
        assert default_pool().budget_bytes == 2**24
        assert a[:, :10].eq(1).all()
        assert b[:, :10].eq(2).all()
        b.copy_(a)
        assert b[:, :10].eq(1).all()
        default_pool().close()
    finally:
        configure()
