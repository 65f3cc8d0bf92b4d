"""Memory under a budget, and back to the device."""

import gc

import torch
from gpu_device import DEVICE, here, on_cuda, on_device, pattern, pool_of, raised, synchronize, tensor_of

import vmm
from vmm.testing import settle

MIB = 2**20


def free_bytes() -> int:
    synchronize()
    return torch.cuda.mem_get_info()[0]


@on_cuda
def test_memory_is_the_devices_until_it_is_given_back():
    slack = 32 * MIB
    with vmm.Pool("1GiB", device=DEVICE) as pool:
        before = free_bytes()
        t = vmm.KVTensor(1, 2**20, 256, pool=pool, device=DEVICE)  # 1 GiB, of which nothing is mapped
        assert before - free_bytes() < slack
        t.reserve(2**19)
        mapped = pool.stats().mapped_bytes
        assert mapped >= 512 * MIB
        assert abs(before - free_bytes() - mapped) < slack
        t.close(stream=here())
        synchronize()
        settle(pool)
        pool.trim()
        assert pool.stats().created_bytes == 0
        assert abs(before - free_bytes()) < slack


@on_cuda
def test_a_closed_pool_has_nothing():
    before = free_bytes()
    pool = vmm.Pool("256MiB", device=DEVICE)
    t = vmm.KVTensor(1, 2**16, 512, pool=pool, device=DEVICE)
    t.append(pattern(1, 2**16, 512))
    synchronize()
    del t
    gc.collect()
    pool.close()
    torch.cuda.empty_cache()
    assert before - free_bytes() < 64 * MIB  # the first pool's driver keeps a stream


@on_device
def test_out_of_pages_is_what_torch_raises_too():
    with pool_of(4) as pool:
        t = tensor_of(pool, 16)
        t.append(pattern(1, 40, t.shape[2]))
        kept = t[:, :40].clone()
        error = raised(vmm.OutOfPages, lambda: t.reserve(16 * 16))
        assert isinstance(error, MemoryError)
        if t.is_cuda:
            assert isinstance(error, torch.OutOfMemoryError)
        assert error.budget == pool.budget_bytes
        assert error.asked > error.free
        assert t.length == 40
        assert torch.equal(t[:, :40], kept)
        t.truncate(0, stream=here())
        t.reserve(4 * 16)  # what fits


@on_device
def test_a_budget_can_be_raised_and_lowered():
    with pool_of(4) as pool:
        t = tensor_of(pool, 16)
        t.reserve(4 * 16)
        raised(vmm.OutOfPages, lambda: t.reserve(5 * 16))
        pool.budget_bytes = 8 * pool.default_page_bytes
        t.reserve(8 * 16)
        t.truncate(2 * 16, stream=here())
        pool.budget_bytes = 2 * pool.default_page_bytes
        settle(pool)
        assert pool.stats().created_bytes <= pool.budget_bytes
        raised(vmm.OutOfPages, lambda: t.reserve(3 * 16))


@on_cuda
def test_a_device_with_less_memory_than_the_budget_says():
    """Pages of 256 MiB, so that filling the device takes a moment only."""
    page = 256 * MIB
    torch.cuda.empty_cache()
    budget = free_bytes() // 10 * 6 // page * page
    with vmm.Pool(budget, device=DEVICE) as first, vmm.Pool(budget, device=DEVICE) as second:
        tokens = budget // MIB
        shape = (1, tokens, MIB // 4)
        taken = vmm.KVTensor(*shape, pool=first, device=DEVICE, page_bytes=page)
        wanted = vmm.KVTensor(*shape, pool=second, device=DEVICE, page_bytes=page)
        taken.reserve(tokens)
        error = raised(vmm.OutOfPages, lambda: wanted.reserve(tokens))
        assert "OUT_OF_MEMORY" in str(error)
        assert wanted.mapped_bytes == 0
        taken.close(stream=here())
        synchronize()
        settle(first)
        first.trim()
        wanted.reserve(tokens)
        assert wanted.mapped_bytes == budget


@on_device
def test_recycled_pages_are_zero():
    with pool_of(8, lookahead_pages=0) as pool:
        for _ in range(3):
            t = tensor_of(pool, 8)
            assert t[:, : t.shape[1]].eq(0).all()
            t[:, : t.shape[1]] = 7.0
            t.close(stream=here())
        assert pool.stats().peak_created_bytes == 8 * pool.default_page_bytes


@on_device
def test_released_tokens_never_show_what_others_wrote():
    with pool_of(8, lookahead_pages=0) as pool:
        a, b = tensor_of(pool, 8), tensor_of(pool, 8)
        a[:, : a.shape[1]] = 7.0
        a.release(0, 64, stream=here())
        b[:, :64] = 1.0  # of a's pages
        b.close(stream=here())
        assert a[:, 64:128].eq(7).all()
        seen = a[:, :64]
        assert (seen.eq(0) | seen.eq(7)).all()


@on_device
def test_two_pools_know_nothing_of_each_other():
    with pool_of(4) as one, pool_of(4) as other:
        a, b = tensor_of(one, 4), tensor_of(other, 4)
        a[:, : a.shape[1]] = 1.0
        b[:, : b.shape[1]] = 2.0
        assert a[:, : a.shape[1]].eq(1).all()
        raised(vmm.OutOfPages, lambda: tensor_of(one, 4).reserve(16))
        a.close(stream=here())
        tensor_of(one, 4).reserve(16)
        assert b[:, : b.shape[1]].eq(2).all()


@on_device
def test_a_pool_closes_before_its_tensors():
    with pool_of(4) as pool:
        t = tensor_of(pool, 4)
        values = pattern(1, 30, t.shape[2])
        t.append(values)
        part = t[:, :30]
    for use in (lambda t: t.append(values), lambda t: t[:, :60], lambda t: tensor_of(pool, 1)[:, :1]):
        raised(vmm.Closed, lambda: use(t))  # noqa: B023
    assert torch.equal(part, values)
    t = None
    gc.collect()
    assert torch.equal(part, values)


@on_device
def test_larger_pages():
    with pool_of(64, lookahead_pages=0) as pool:
        page = 8 * pool.default_page_bytes
        t = vmm.KVTensor(2, 3 * page // 64, 16, pool=pool, device=DEVICE, page_bytes=page)
        t[:, :10] = 3.0
        assert t.mapped_bytes == 2 * page
        assert t[:, :10].eq(3).all()
        assert t[1, 10:20].eq(0).all()


@on_device
def test_the_default_pool_of_the_device():
    vmm.configure(budget="64MiB", device=DEVICE)
    pool = vmm.default_pool(DEVICE)
    assert pool.budget_bytes == 64 * MIB
    t = vmm.KVTensor(1, 1000, 16, device=DEVICE)
    t[0, 5] = 1.0
    assert t[0, :6].sum() == 16
    assert pool.stats().reservations_leased > 0
    t.close(stream=here())
    synchronize()
    pool.close()
    vmm.configure(budget=None, device=DEVICE)
