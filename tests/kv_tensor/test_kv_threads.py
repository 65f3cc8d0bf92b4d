"""Several threads, several tensors, one pool, with its pager at work."""

import copy
import threading

import torch
from at_once import at_once

from vmm import KVTensor, OutOfPages, Pool, Stream
from vmm.testing import settle

PAGE = 4096


def test_appends_to_one_tensor_do_not_overlap_and_none_is_lost(make):
    t, threads, each = make(2, 4 * 300 * 5, 7), 4, 300

    def work(which):
        for i in range(each):
            t.append(torch.full((2, 1 + i % 5, 7), float(which * each + i)))

    at_once(*(lambda which=which: work(which) for which in range(threads)))
    assert t.length == threads * sum(1 + i % 5 for i in range(each))
    values = t[:, : t.length]
    assert (values == values[:1, :, :1]).all()
    found, counts = values[0, :, 0].unique_consecutive(return_counts=True)
    assert sorted(found.tolist()) == list(range(threads * each))
    assert torch.equal(counts, 1 + found.long() % each % 5)


def test_appends_and_writes_by_index(make):
    """Both raise ``length``; neither takes it back."""
    t = make(2, 20_000, 3)

    def append():
        for _ in range(400):
            before = t.length
            t.append(torch.ones(2, 3, 3))
            assert t.length >= before + 3

    def write():
        for i in range(400):
            t[1, i] = 5.0
            t[:, i].mul_(1)
            assert t.length > i

    at_once(append, write, append)
    assert t.length >= 2400


def test_each_its_own_row(make):
    t = make(8, 3000, 5, dtype=torch.int64)  # rows begin in the middle of pages

    def work(row):
        for token in range(0, 3000, 13):
            t[row, token : token + 13] = row * 3000 + token
            assert t[row, token].eq(row * 3000 + token).all()

    at_once(*(lambda row=row: work(row) for row in range(8)))
    expected = torch.arange(8)[:, None] * 3000 + torch.arange(3000) // 13 * 13
    assert torch.equal(t.clone()[..., 0], expected)


def test_tensors_that_take_each_others_memory():
    """Room for all that is live and little more; who finds none tries again."""
    with Pool(120 * PAGE) as pool:

        def churn(seed):
            generator = torch.Generator().manual_seed(seed)
            t = KVTensor(2, 100_000, 16, pool=pool, page_bytes=PAGE)
            expected = torch.zeros(2, 0, 16)
            for i in range(150):
                x = torch.randn(2, 1 + i % 97, 16, generator=generator)
                if expected.shape[1] + x.shape[1] > 64 * 17:
                    keep = i % 50
                    view = t[:, : keep + 1]
                    t.truncate(keep)
                    expected = expected[:, :keep]
                    assert torch.equal(view[:, :keep], expected)
                    del view
                try:
                    t.append(x)
                    expected = torch.cat([expected, x], 1)
                except OutOfPages:
                    pass
                assert t.length == expected.shape[1]
                assert torch.equal(t[:, : t.length], expected)

        at_once(*(lambda seed=seed: churn(seed) for seed in range(4)))
        pool.check()
        settle(pool, still_seconds=0.01)
        assert pool.stats().kept_bytes == 0
        assert pool.stats().created_bytes <= 120 * PAGE


def test_readers_behind_a_sliding_window(pool, make):
    """Readers find under a lock which tokens are live, slice them, and read after they were released."""
    t, lock, done = make(3, 50_000, 11), threading.Lock(), threading.Event()

    def write():
        for i in range(400):
            t.append(torch.full((3, 100, 11), float(i)))
            with lock:
                t.release(0, t.length - 100)
        done.set()

    def read():
        while not done.is_set():
            with lock:
                live = t.length // 100 * 100
                view = t[:, live - 100 : live] if live else None
            assert view is None or view.eq(live // 100 - 1).all()

    at_once(write, read, read)
    t.close()
    settle(pool, still_seconds=0.01)
    assert pool.stats().kept_bytes == 0


def test_slices_outlive_releases_by_other_threads(pool, make):
    t = make(2, 64 * 400, 16)
    t.append(torch.arange(64.0 * 400)[None, :, None].expand(2, -1, 16))
    stop = threading.Event()

    def let_go():
        for page in range(400):
            t.release(page * 64, page * 64 + 64)
        stop.set()

    def check(views):
        while True:
            last = stop.is_set()
            for start, view in views:
                assert torch.equal(view[0, :, 0], torch.arange(start, start + 64.0))
            if last:
                return

    views = [(64 * page, t[:, 64 * page : 64 * page + 64]) for page in range(0, 400, 7)]
    at_once(let_go, lambda some=views[::2]: check(some), lambda some=views[1::2]: check(some))
    settle(pool, still_seconds=0.01)
    assert t.mapped_bytes >= len(views) * 2 * PAGE
    del views
    settle(pool, still_seconds=0.01)
    assert t.mapped_bytes <= 2 * PAGE


def test_copies_both_ways(make):
    """Both tensors' locks are taken, in one order."""
    a, b = make(2, 1000, 3), make(2, 1000, 3)
    a.append(torch.ones(2, 500, 3))
    b.append(torch.ones(2, 400, 3))
    work = [lambda: [a.copy_(b) for _ in range(100)], lambda: [b.copy_(a) for _ in range(100)]]
    at_once(*work, *work)
    assert a.length == b.length in {400, 500}
    assert a[:, : a.length].eq(1).all()


def test_everything_else_at_once(pool, make):
    t = make(2, 5000, 9)
    t.append(torch.ones(2, 100, 9))

    def others():
        for _ in range(30):
            twin = copy.deepcopy(t)
            assert twin[:, :100].eq(1).all()
            assert t.half()[:, :100].eq(1).all()
            assert t.mapped_bytes > 0
            repr(t), t.transpose(0, 1).shape
            t.reserve(300)

    def streams():
        for _ in range(30):
            with Stream(pool) as stream:
                stream.copy(t[0, 1000:1010], t[0, :10])
                t.release(2000, 5000, stream=stream)

    at_once(others, streams, others, lambda: [pool.trim() for _ in range(50)])
    assert t[:, :100].eq(1).all()


def test_closing_while_others_use_it(make):
    from vmm import Closed

    for _ in range(20):
        t = make(2, 50_000, 3)

        def work(t=t):
            try:
                while True:
                    t.append(torch.ones(2, 7, 3))
                    assert t[:, :7].eq(1).all()
                    if t.length > 40_000:
                        return
            except Closed:
                return

        at_once(work, work, t.close)
        assert "closed" in repr(t)
