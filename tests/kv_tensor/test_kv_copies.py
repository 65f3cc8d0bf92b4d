"""deepcopy, pickle, torch.save and load: the live tokens, what is shared, and no more."""

import copy
import io
import pickle

import pytest
import torch

from child import run_child
from vmm import KVTensor, OutOfPages, Pool, configure, default_pool
from vmm.testing import settle


def saved(thing):
    file = io.BytesIO()
    torch.save(thing, file)
    return file.getvalue()


def through_pickle(thing):
    return pickle.loads(pickle.dumps(thing))


def through_save(thing):
    return torch.load(io.BytesIO(saved(thing)), weights_only=False)


def through_safe_load(thing):
    return torch.load(io.BytesIO(saved(thing)), weights_only=True)


ROUND_TRIPS = pytest.mark.parametrize(
    "round_trip", [copy.deepcopy, through_pickle, through_save, through_safe_load]
)


@pytest.fixture(autouse=True, scope="module")
def small_default_pool():
    configure(budget="64MiB")
    yield
    default_pool().close()
    configure()


@pytest.fixture
def t(make):
    t = make(3, 5000, 7)
    t.append(torch.arange(3.0 * 100 * 7).view(3, 100, 7))
    t[1, 100:150] = -1.0
    return t


def assert_same(a, b):
    assert (a.shape, a.dtype, a.stride(), a.length) == (b.shape, b.dtype, b.stride(), b.length)
    assert torch.equal(a[:, : a.length], b[:, : b.length])
    assert a[:, a.length : a.length + 50].eq(0).all()


@ROUND_TRIPS
def test_the_copy_and_the_original_go_separate_ways(t, round_trip):
    twin = round_trip(t)
    assert type(twin) is KVTensor
    assert_same(twin, t)
    assert twin.mapped_bytes <= t.mapped_bytes + 2 * 65536
    before = t[:, :150].clone()
    twin.append(torch.ones(3, 4, 7))
    twin[:, :5] = 0.0
    twin.truncate(120)
    assert torch.equal(t[:, :150], before)
    t.truncate(0)
    assert torch.equal(twin[:, 5:120], before[:, 5:120])
    assert (t.length, twin.length) == (0, 120)


@ROUND_TRIPS
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.bool, torch.float8_e4m3fn, torch.complex64])
def test_dtypes(make, round_trip, dtype):
    if round_trip is through_pickle and dtype == torch.float8_e4m3fn:
        pytest.skip("torch itself cannot pickle float8, only save it")
    t = make(2, 100, 9, dtype=dtype, grow_dim=-2)
    t.append(torch.ones(2, 10, 9).to(dtype))
    twin = round_trip(t)
    assert twin.dtype == dtype
    assert torch.equal(twin[:, :12].to(torch.complex64), t[:, :12].to(torch.complex64))


@ROUND_TRIPS
def test_an_empty_tensor_and_a_released_one(make, t, round_trip):
    twin = round_trip(make(2, 100))
    assert (twin.length, twin.mapped_bytes) == (0, 0)
    t.release(0, 5000)
    twin = round_trip(t)
    assert twin.length == t.length == 150
    assert twin[:, :150].eq(0).all()


@ROUND_TRIPS
def test_what_is_shared_stays_shared(t, round_trip):
    twin, view, again, plain = round_trip([t, t.transpose(0, 1), t, t[:, :10]])
    assert again is twin
    assert torch.equal(view[:10], twin[:, :10].transpose(0, 1))
    twin[2, 3] = 77.0
    assert view[3, 2].eq(77).all()
    assert view.stride() == t.transpose(0, 1).stride()
    assert type(plain) is torch.Tensor
    assert not plain[2, 3].eq(77).any()
    assert not t[2, 3].eq(77).any()


@ROUND_TRIPS
def test_a_view_alone_brings_its_tensor(t, round_trip):
    view = round_trip(t.permute(2, 1, 0)[1:3])
    assert type(view) is KVTensor
    assert view.shape == (2, 5000, 3)
    assert torch.equal(view[:, :120], t[:, :120].permute(2, 1, 0)[1:3])


@ROUND_TRIPS
def test_requires_grad(make, round_trip):
    leaf = make(2, 50).requires_grad_()
    twin = round_trip(leaf)
    assert twin.requires_grad
    assert twin.is_leaf
    (twin[:, :3] * 2).sum().backward()
    assert twin.grad[:, :3].eq(2).all()
    assert leaf.grad is None


def test_deepcopy_of_what_autograd_made(t):
    t[:, :3] = torch.ones(3, 3, 7, requires_grad=True) * 2
    with pytest.raises(RuntimeError, match="created explicitly by the user"):
        copy.deepcopy(t)


def test_shallow_copies_share(t):
    twin = copy.copy(t)
    twin[0, 0] = 55.0
    assert t[0, 0].eq(55).all()
    assert twin.length == t.length


def test_sizes_are_those_of_the_live_tokens(make):
    t = make(2, 2**20, 32)  # 256 MiB
    t.append(torch.randn(2, 1000, 32))
    live = 2 * 1000 * 32 * 4
    for data in (pickle.dumps(t), saved(t), saved(t.transpose(0, 1)), saved({"a": t, "b": t.detach()})):
        assert live <= len(data) < live + 4_000
    t.truncate(10)
    assert len(saved(t)) < 2 * 10 * 32 * 4 + 4_000
    row = make(100, 2**16, 16)
    row[7, :100] = 1.0  # one row of many
    assert len(saved(row)) < 100 * 64 + 4_000


def test_deepcopy_stays_in_the_pool_and_pickle_goes_to_the_default_one(pool, t):
    mapped = pool.stats().kept_bytes
    twin = copy.deepcopy(t)
    assert pool.stats().kept_bytes == 2 * mapped
    loaded = through_pickle(t)
    assert pool.stats().kept_bytes == 2 * mapped
    assert default_pool().stats().kept_bytes > 0
    assert_same(loaded, twin)


def test_no_memory_for_a_copy(pool):
    with Pool(64 * 4096, lookahead_pages=0) as small:
        t = KVTensor(1, 10_000, 16, pool=small, page_bytes=4096)
        t.append(torch.ones(1, 64 * 40, 16))
        with pytest.raises(OutOfPages) as error:
            copy.deepcopy(t)
        assert error.value.asked > error.value.free + error.value.reclaimable
        assert error.value.budget == 64 * 4096
        settle(small, still_seconds=0.01)
        assert small.stats().kept_bytes == 40 * 4096
        assert t[:, : 64 * 40].eq(1).all()
        target = KVTensor(1, 10_000, 16, pool=small, page_bytes=4096)
        target.append(torch.full((1, 640, 16), 2.0))
        with pytest.raises(OutOfPages):
            target.copy_(t)
        assert target.length == 640
        assert target[:, :640].eq(2).all()


def test_copying_between_tensors(make, t):
    other = make(3, 5000, 7)
    other[:, 2000:2100] = 9.0
    assert other.copy_(t) is other
    assert_same(other, t)
    assert other[:, 2000:2100].eq(0).all()
    assert t.copy_(t) is t
    assert_same(other, t)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16, torch.int8, torch.float32])
def test_conversions_keep_the_tokens(t, dtype):
    plain = t[:, :200].clone()
    made = t.to(dtype)
    assert type(made) is KVTensor
    assert (made is t) == (dtype == t.dtype)
    assert made.length == 150
    assert torch.equal(made[:, :200], plain.to(dtype))


WORKER = """
import torch, vmm
def work(t):
    assert type(t) is vmm.KVTensor
    t.append(t[:, :3] * 2)
    return t, t.transpose(0, 1)
"""


def test_through_a_process_made_by_spawn(tmp_path):
    (tmp_path / "worker.py").write_text(WORKER)
    result = run_child(f"""
        import sys
        sys.path.insert(0, {str(tmp_path)!r})
        if __name__ == "__main__":
            import multiprocessing, torch, vmm, worker
            from concurrent.futures import ProcessPoolExecutor
            vmm.configure(budget="16MiB")
            t = vmm.KVTensor(2, 10_000, 4)
            t.append(torch.arange(24.0).view(2, 3, 4))
            with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as executor:
                back, view = executor.submit(worker.work, t).result(timeout=60)
            assert (t.length, back.length) == (3, 6)
            assert torch.equal(back[:, 3:6], 2 * t[:, :3])
            view[0, 0] = 5.0
            assert back[0, 0].eq(5).all()
            print("done")
        """)
    assert result.stdout == "done\n", result.stderr
