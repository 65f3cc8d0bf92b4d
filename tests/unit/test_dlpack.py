"""Memory as tensors: what is exported, and who keeps it alive."""

import gc

import pytest
import torch

from vmm import InvalidArgument, Pool

PAGE = 65536


@pytest.fixture
def pool():
    return Pool("8MiB")


def lease_of(pool, pages=4):
    lease = pool._core.reserve(page_bytes=PAGE, extent_bytes=pages * PAGE, extents=1)
    lease.map([(0, pages)])
    return lease


def export(lease, *, shape=(4, 8), strides=(8, 1), offset=0, code=2, bits=32):
    return lease.dlpack(offset_bytes=offset, shape=shape, strides=strides, type_code=code, type_bits=bits)


def test_a_tensor_sees_the_memory(pool):
    lease = lease_of(pool)
    one = torch.from_dlpack(export(lease))
    two = torch.from_dlpack(export(lease, shape=(8,), strides=(1,), offset=32))
    one.copy_(torch.arange(32.0).view(4, 8))
    assert one.data_ptr() == lease.address
    assert two.tolist() == list(range(8, 16))


@pytest.mark.parametrize(
    ("code", "bits", "dtype"),
    [(4, 16, torch.bfloat16), (2, 16, torch.float16), (2, 64, torch.float64), (0, 32, torch.int32)],
)
def test_types(pool, code, bits, dtype):
    assert torch.from_dlpack(export(lease_of(pool), code=code, bits=bits)).dtype == dtype


def test_a_tensor_keeps_its_memory(pool):
    tensor = torch.from_dlpack(export(lease_of(pool)))
    gc.collect()
    tensor.fill_(3)
    assert pool.stats().reservations_leased == 1
    pool.close()
    assert tensor.sum() == 96
    del tensor
    assert pool.stats().created_bytes == 0


def test_a_capsule_nobody_takes_lets_go(pool):
    capsule = export(lease_of(pool))
    assert pool.stats().reservations_leased == 1
    del capsule
    assert pool.stats().reservations_leased == 0


@pytest.mark.parametrize(
    "options",
    [
        {"shape": (2**40,), "strides": (1,)},
        {"shape": (2**62, 2**62), "strides": (2**62, 1)},
        {"shape": (4, 8), "strides": (8,)},
        {"shape": (4,), "strides": (-1,)},
        {"shape": (-4,), "strides": (1,)},
        {"offset": 2**40},
        {"offset": 4 * PAGE - 4},
        {"bits": 12},
        {"bits": 0},
    ],
)
def test_nothing_beyond_the_lease_is_exported(pool, options):
    with pytest.raises(InvalidArgument):
        export(lease_of(pool), **options)
