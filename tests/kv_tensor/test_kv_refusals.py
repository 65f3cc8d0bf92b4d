"""Bad input: an error that says what was wrong, and nothing has changed."""

import pytest
import torch

from vmm import Error, InvalidArgument, KVTensor, OutOfPages, Pool
from vmm.testing import settle

PAGE = 4096


@pytest.fixture
def pool():
    with Pool("64MiB", lookahead_pages=0) as pool:
        yield pool
        pool.check()


def state(pool, *tensors):
    settle(pool, still_seconds=0.002)
    stats = pool.stats()
    return (
        [(t.length, t.mapped_bytes, t[:, : t.length].tolist()) for t in tensors],
        stats.kept_bytes, stats.mapped_bytes, stats.reservations_leased, stats.retirements_waiting,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("shape", "options", "said"),
    [
        ((), {}, "shape"),
        (((),), {}, "shape"),
        ((0, 5), {}, "shape"),
        ((2, -5), {}, "shape"),
        ((2, 5.0), {}, "shape"),
        (("2", 5), {}, "shape"),
        (((2, 5), 3), {}, "shape"),
        ((None,), {}, "shape"),
        ((True, 5), {}, "shape"),
        ((1, 2**62), {}, "addressed"),
        ((2**62, 2**62, 2**62), {}, "addressed"),
        ((1, 2**44), {"page_bytes": 2**30}, "address space"),
        ((1, 2**41), {"page_bytes": 4096}, "page_bytes"),
        ((1, 2**44), {}, "page_bytes"),
        ((2**33, 1), {"dtype": torch.int8}, "rows"),
        ((2**40, 2, 1), {}, "rows"),
        ((2, 5), {"grow_dim": 2}, "grow_dim"),
        ((2, 5), {"grow_dim": -3}, "grow_dim"),
        ((5,), {}, "grow_dim"),
        ((2, 5), {"grow_dim": None}, "grow_dim"),
        ((2, 5), {"grow_dim": True}, "grow_dim"),
        ((2, 5), {"grow_dim": 1.0}, "grow_dim"),
        ((2, 5), {"dtype": torch.qint8}, "dtype"),
        ((2, 5), {"dtype": "float32"}, "dtype"),
        ((2, 5), {"dtype": float}, "dtype"),
        ((2, 5), {"page_bytes": 0}, "page_bytes"),
        ((2, 5), {"page_bytes": -4096}, "page_bytes"),
        ((2, 5), {"page_bytes": 1024}, "page_bytes"),
        ((2, 5), {"page_bytes": 5000}, "page_bytes"),
        ((2, 5), {"page_bytes": 2**50}, "page_bytes"),
        ((2, 5), {"page_bytes": 2**70}, "page_bytes"),
        ((2, 5), {"page_bytes": 4096.0}, "page_bytes"),
        ((2, 5), {"page_bytes": True}, "page_bytes"),
        ((2, 5), {"pool": 5}, "pool"),
        ((2, 5), {"pool": "64MiB"}, "pool"),
    ],
    ids=str,
)
def test_what_cannot_be_made(pool, shape, options, said):
    before = state(pool)
    with pytest.raises(InvalidArgument, match=said):
        KVTensor(*shape, **({"pool": pool} | options))
    assert state(pool) == before


@pytest.mark.host_only
@pytest.mark.parametrize("device", ["meta", "cuda", torch.device("cuda", 1)], ids=str)
def test_another_device_than_the_pool_s(pool, device):
    with pytest.raises(InvalidArgument, match="device"):
        KVTensor(2, 5, device=device, pool=pool)
    assert pool.stats().reservations_leased == 0


def test_what_torch_refuses_is_refused(pool):
    for bad in ({"device": "nonsense"}, {"device": 1.5}):
        with pytest.raises((RuntimeError, TypeError)):
            KVTensor(2, 5, pool=pool, **bad)
    with pytest.raises(TypeError):
        KVTensor(2, 5, pool=pool, unknown=1)
    assert pool.stats().reservations_leased == 0


@pytest.fixture
def t(make):
    t = make(2, 100, 3)
    t.append(torch.arange(2.0 * 90 * 3).view(2, 90, 3))
    return t


APPENDS = {
    "past the end": lambda: torch.zeros(2, 11, 3),
    "another batch": lambda: torch.zeros(1, 1, 3),
    "another record": lambda: torch.zeros(2, 1, 4),
    "a dimension less": lambda: torch.zeros(2, 3),
    "a dimension more": lambda: torch.zeros(1, 2, 1, 3),
    "no dimension": lambda: torch.tensor(1.0),
    "another dtype": lambda: torch.zeros(2, 1, 3, dtype=torch.float64),
    "integers": lambda: torch.zeros(2, 1, 3, dtype=torch.int32),
    "another device": lambda: torch.zeros(2, 1, 3, device="meta"),
    "sparse": lambda: torch.zeros(2, 1, 3).to_sparse(),
    "a list": lambda: [[[0.0] * 3]] * 2,
    "None": lambda: None,
    "a number": lambda: 1.0,
}


@pytest.mark.parametrize("name", APPENDS)
def test_append(pool, t, name):
    before = state(pool, t)
    with pytest.raises(InvalidArgument):
        t.append(APPENDS[name]())
    assert state(pool, t) == before


def test_append_to_what_is_full(pool, t):
    t.append(torch.ones(2, 10, 3))
    before = state(pool, t)
    with pytest.raises(InvalidArgument, match="only 0 more fit"):
        t.append(torch.ones(2, 1, 3))
    t.append(torch.ones(2, 0, 3))
    assert state(pool, t) == before


@pytest.mark.parametrize("bad", [-1, 101, 2**70, 1.0, "1", None, True, torch.tensor(1)], ids=str)
def test_token_counts(pool, t, bad):
    before = state(pool, t)
    calls = [
        lambda: t.truncate(bad),
        lambda: t.reserve(bad),
        lambda: t.release(bad, 5),
        lambda: t.release(0, bad),
    ]
    for call in calls:
        with pytest.raises(InvalidArgument, match="expected 0 to 100"):
            call()
    with pytest.raises(InvalidArgument, match="start <= end"):
        t.release(6, 5)
    assert state(pool, t) == before


def test_views_are_not_the_tensor(pool, t):
    view, before = t.transpose(0, 1), state(pool, t)
    calls = [
        lambda: view.append(torch.ones(100, 1, 3)), lambda: view.truncate(0), lambda: view.release(0, 1),
        lambda: view.reserve(1),
    ]  # fmt: skip
    for call in calls:
        with pytest.raises(InvalidArgument, match="this is a view"):
            call()
    assert state(pool, t) == before


def test_what_would_move_the_memory(pool, t):
    before, address = state(pool, t), t.data_ptr()
    calls = [
        lambda: t.resize_(3), lambda: t.set_(torch.zeros(3)), t.share_memory_,
        lambda: t.resize_as_(torch.zeros(3)), lambda: t.resize_(2, 10**6),
        lambda: setattr(t, "data", torch.zeros(2, 100, 3)),
    ]  # fmt: skip
    for call in calls:
        with pytest.raises(InvalidArgument, match="stays where it is"):
            call()
    assert (state(pool, t), t.data_ptr()) == (before, address)


WRITES = {
    "a wrong shape": lambda t: t.__setitem__((slice(None), slice(95, 99)), torch.ones(2, 3, 3)),
    "a wrong row": lambda t: t.__setitem__((2, 95), 1.0),
    "a token past the end": lambda t: t.__setitem__((0, 100), 1.0),
    "a position past the end": lambda t: t.__setitem__((0, torch.tensor([100])), 1.0),
    "too many indices": lambda t: t.__setitem__((0, 95, 0, 0), 1.0),
    "text": lambda t: t.__setitem__((0, 95), "x"),
    "a step of zero": lambda t: t.__setitem__((0, slice(0, 99, 0)), 1.0),
    "a wrong read": lambda t: t[5, :99],
    "a wrong narrow": lambda t: t.narrow(1, 90, 11),
    "a wrong select": lambda t: t.select(1, 100),
    "a wrong view": lambda t: t.view(7, -1),
    "a wrong copy": lambda t: t.copy_(torch.ones(2, 99, 3)),
    "another memory": lambda t: t.__setitem__((0, 95), torch.ones(3, device="meta")),
}


@pytest.mark.parametrize("name", WRITES)
def test_indexing_refuses_as_torch_does(pool, t, name):
    before = state(pool, t)
    with pytest.raises(Exception) as ours:  # noqa: PT011
        WRITES[name](t)
    with pytest.raises(type(ours.value)):
        WRITES[name](torch.zeros(2, 100, 3))
    assert not isinstance(ours.value, Error)
    if name not in {"a wrong copy", "another memory"}:
        assert state(pool, t)[0][0][1:] == before[0][0][1:]
    assert state(pool, t)[0][0][0] == 90


GROWING = {
    "append": lambda t: t.append(torch.ones(2, 64 * 40, 16)),
    "write": lambda t: t.__setitem__((slice(None), slice(64, 64 * 40)), 1.0),
    "write at positions": lambda t: t.__setitem__((slice(None), torch.arange(0, 64 * 40, 8)), 1.0),
    "slice": lambda t: t[:, : 64 * 40],
    "row": lambda t: t[1] + 1,
    "reserve": lambda t: t.reserve(64 * 40),
    "consume": lambda t: t.sum(),
    "fill": lambda t: t.fill_(1),
    "clone": lambda t: t.clone(),
}


@pytest.mark.parametrize("name", GROWING)
def test_no_memory(name):
    with Pool(64 * PAGE, lookahead_pages=0) as pool:
        other = KVTensor(2, 10_000, 16, pool=pool, page_bytes=PAGE)
        other.append(torch.ones(2, 64 * 5, 16))
        t = KVTensor(2, 10_000, 16, pool=pool, page_bytes=PAGE)
        t.append(torch.full((2, 64, 16), 2.0))
        before = state(pool, t, other)
        with pytest.raises(OutOfPages) as error:
            GROWING[name](t)
        assert error.value.budget == 64 * PAGE
        assert error.value.asked > error.value.free + error.value.reclaimable
        assert error.value.free <= 64 * PAGE
        assert state(pool, t, other) == before
        other.close()
        t.append(torch.ones(2, 64 * 20, 16))  # with what the other has given back
        assert t.length == 64 * 21
        pool.check()


def test_an_address_is_told_but_not_to_write_there(t):
    over = torch.empty(0).set_(t.untyped_storage(), 0, t.shape)
    assert t.untyped_storage().data_ptr() == t.data_ptr() == t[:, :1].data_ptr()
    assert t[1:].data_ptr() == t[1, :1].data_ptr()
    assert torch.equal(over[:, :90], t[:, :90])
    for write in (lambda: over.fill_(1), lambda: torch.utils.dlpack.to_dlpack(t), over.data_ptr):
        with pytest.raises(RuntimeError, match="Cannot access data pointer"):
            write()
    assert not hasattr(t, "__cuda_array_interface__")  # with torch's own error


def test_what_changes_the_shape_where_it_stands(make):
    changes = [
        lambda x: x.transpose_(1, 2), lambda x: x.unsqueeze_(0), lambda x: x.squeeze_(0),
        lambda x: x.swapaxes_(0, 1), lambda x: torch.ops.aten.transpose_(x, 0, 1), lambda x: x.detach_(),
        lambda x: x.resize_(x.shape) if x.is_contiguous() else x, lambda x: x.squeeze_(),
        lambda x: x.as_strided_((2, 40, 3), (300, 3, 1), 30),
    ]  # fmt: skip
    ours, plain = make(2, 100, 3), torch.zeros(2, 100, 3)
    ours[:, :90] = plain[:, :90] = torch.arange(540.0).view(2, 90, 3)
    for change in changes:
        assert change(ours) is ours
        change(plain)
        assert (ours.shape, ours.stride()) == (plain.shape, plain.stride())
        assert torch.equal(ours, plain)
        dim = plain.shape.index(40) if 40 in plain.shape else plain.shape.index(100)
        for tensor in (ours, plain):
            tensor.narrow(dim, 20, 7).add_(1)
            tensor[(slice(None),) * dim + (slice(5, 6),)] = 7
    with pytest.raises(InvalidArgument, match="view"):
        ours.append(torch.zeros(2, 1, 3))


def test_a_shape_that_was_changed_back(t):
    t.transpose_(1, 2).transpose_(1, 2).resize_(2, 100, 3).resize_as_(torch.zeros(2, 100, 3)).detach_()
    t.append(torch.ones(2, 1, 3))
    assert t.length == 91


@pytest.mark.filterwarnings("ignore:An output with one or more elements was resized")
@pytest.mark.parametrize(
    "call",
    [
        lambda t: torch.sum(torch.ones(5, 3), 0, out=t),
        lambda t: torch.ops.aten.sum.IntList_out(torch.ones(5, 3), [0], out=t),
        lambda t: torch.ops.aten.randn.out([3], out=t),
    ],
)
def test_a_result_of_another_shape(t, call):
    with pytest.raises(InvalidArgument, match=r"result has shape|stays where it is"):
        call(t)
    assert t.shape == (2, 100, 3)


def test_a_result_of_its_shape(t):
    assert torch.ops.aten.ones.out([2, 100, 3], out=t) is t
    assert t.sum() == 600
