"""KVTensor on the GPU does what torch.zeros does."""

import copy
import random

import torch
from gpu_device import DEVICE, Side, here, on_device, pattern, pool_of, side_pages, synchronize, tensor_of

import vmm

ROWS, PAGES = 3, 6


class Twin:
    """A KVTensor, a torch.zeros of its shape, and which tokens they agree on: not on released ones."""

    def __init__(self, pool: vmm.Pool, seed: int) -> None:
        self.ours = tensor_of(pool, PAGES, ROWS)
        self.theirs = torch.zeros(self.ours.shape, device=DEVICE)
        self.known = torch.ones(self.ours.shape[:2], dtype=torch.bool)
        self.random = random.Random(seed)
        self.tokens = self.ours.shape[1]
        self.seed = seed

    def _span(self) -> slice:
        start, end = sorted(self.random.sample(range(self.tokens + 1), 2))
        return slice(start, end)

    def _values(self, *shape: int) -> torch.Tensor:
        self.seed += 1
        return pattern(*shape, self.ours.shape[2], seed=self.seed)

    def write(self) -> None:
        rows, span = self.random.randint(1, ROWS), self._span()
        values = self._values(rows, span.stop - span.start)
        self.ours[:rows, span] = values
        self.theirs[:rows, span] = values
        self.known[:rows, span] = True

    def write_scattered(self) -> None:
        rows = torch.tensor(self.random.sample(range(ROWS), 2), device=DEVICE)
        tokens = torch.tensor(self.random.sample(range(self.tokens), 2), device=DEVICE)
        values = self._values(2)
        self.ours[rows, tokens] = values
        self.theirs[rows, tokens] = values
        self.known[rows.cpu(), tokens.cpu()] = True

    def add(self) -> None:
        span = self._span()
        self.ours[:, span].add_(1)
        self.theirs[:, span] += 1

    def append(self) -> None:
        start = self.ours.length
        count = min(self.random.randint(1, 20), self.tokens - start)
        if count:
            values = self._values(ROWS, count)
            self.ours.append(values)
            self.theirs[:, start : start + count] = values
            self.known[:, start : start + count] = True

    def truncate(self) -> None:
        to = self.random.randint(0, self.tokens)
        self.ours.truncate(to, stream=here())
        self.known[:, to:] = False

    def release(self) -> None:
        span = self._span()
        self.ours.release(span.start, span.stop, stream=here())
        self.known[:, span] = False

    def compare(self) -> None:
        rows, span = self.random.randint(1, ROWS), self._span()
        ours, theirs, known = (t[:rows, span] for t in (self.ours, self.theirs, self.known))
        assert type(ours) is torch.Tensor
        assert torch.equal(ours.cpu()[known], theirs.cpu()[known])

    def step(self) -> str:
        steps = [self.write, self.write_scattered, self.add, self.append, self.compare, self.compare]
        chosen = self.random.choice([*steps, self.truncate, self.release])
        chosen()
        return chosen.__name__


@on_device
def test_a_tensor_is_its_twin():
    for seed in range(4):
        done = []
        with pool_of(ROWS * PAGES + 4) as pool:
            twin = Twin(pool, seed)
            for _ in range(120):
                done.append(twin.step())
            twin.compare()
            assert torch.equal(twin.ours.cpu()[twin.known], twin.theirs.cpu()[twin.known]), done
            assert {"truncate", "release", "append", "write"} <= set(done)
            twin.ours.close(stream=here())


@on_device
def test_a_tensor_is_its_twin_while_another_stream_works():
    with pool_of(2 * ROWS * PAGES + 8 + side_pages()) as pool:
        twin, side = Twin(pool, 99), Side(pool)
        seen = tensor_of(pool, PAGES)
        steady = tensor_of(pool, PAGES)  # what the other stream reads: nobody changes it meanwhile
        steady.append(pattern(*steady.shape, seed=5))
        for start in range(0, steady.shape[1], 16):
            part = slice(start, start + 16)
            side.slow_copy(seen[0, part], steady[0, part])
            for _ in range(10):
                twin.step()
        twin.compare()
        side.finish()
        assert torch.equal(seen[:, : seen.shape[1]], steady[:, : steady.shape[1]])


@on_device
def test_shape_strides_and_address_are_a_tensors():
    with pool_of(8) as pool:
        t = tensor_of(pool, 4, 2)
        address = t.data_ptr()
        assert t.device == torch.device(DEVICE)
        assert t.stride() == torch.empty(t.shape).stride()
        assert t.mapped_bytes == 0
        t.append(pattern(2, 20, t.shape[2]))
        t.reserve(64)
        assert t.data_ptr() == address == t[:, :64].data_ptr()
        assert t[1, 3:9].data_ptr() == address + (64 + 3) * t.shape[2] * 4
        t.truncate(0, stream=here())
        assert t.data_ptr() == address


@on_device
def test_what_was_never_written_is_zero():
    with pool_of(10) as pool:
        t = tensor_of(pool, 4, 2)
        t[1, 3] = 5.0
        expected = torch.zeros(t.shape, device=DEVICE)
        expected[1, 3] = 5.0
        assert torch.equal(t[:, :16], expected[:, :16])
        assert t.sum() == 5.0 * t.shape[2]  # uses all of it, so all is mapped
        assert torch.equal(t[:, :64], expected)
        assert t.mapped_bytes == 8 * pool.default_page_bytes


@on_device
def test_every_dtype():
    names = "float64 float32 float16 bfloat16 int64 int8 uint8 bool complex64 float8_e4m3fn"
    with pool_of(64) as pool:
        for dtype in (getattr(torch, name) for name in names.split()):
            values = pattern(1, 7, 33).to(dtype) if dtype != torch.bool else pattern(1, 7, 33) > 500
            with vmm.KVTensor(1, 100, 33, dtype=dtype, pool=pool, device=DEVICE) as t:
                t[:, 5:12] = values
                assert t[:, 5:12].dtype == dtype
                assert torch.equal(t[:, 5:12].view(torch.uint8), values.view(torch.uint8))
                synchronize()


@on_device
def test_indices_that_are_tensors_on_the_device():
    with pool_of(12) as pool:
        t = tensor_of(pool, 4, 2)
        twin = torch.zeros(t.shape, device=DEVICE)
        where = torch.tensor([40, 2, 17], device=DEVICE)
        values = pattern(2, 3, t.shape[2])
        for each in (t, twin):
            each.index_copy_(1, where, values)
        assert torch.equal(t[:, where], twin[:, where])
        mask = torch.zeros(t.shape[:2], dtype=torch.bool, device=DEVICE)
        mask[1, 2] = mask[0, 40] = True
        assert torch.equal(t[mask], twin[mask])
        assert torch.equal(t.index_select(1, where), twin.index_select(1, where))
        index = where.view(1, 3, 1).expand(2, 3, t.shape[2])
        assert torch.equal(t.gather(1, index), twin.gather(1, index))
        for each in (t, twin):
            each[where[:2] % 2, where[:2]] = 3.0
        assert torch.equal(t[:, :64], twin)


@on_device
def test_rows_that_share_pages():
    with pool_of(64) as pool:
        t = vmm.KVTensor(50, 33, 7, pool=pool, device=DEVICE)
        twin = torch.zeros(t.shape, device=DEVICE)
        for each in (t, twin):
            each[3:40, 5:9] = pattern(37, 4, 7)
            each[17, 30:33] = 2.0
        assert torch.equal(t[:50, :33], twin)


@on_device
def test_copies():
    with pool_of(16) as pool:
        t = tensor_of(pool, 2, 2)
        values = pattern(2, 20, t.shape[2])
        t.append(values)
        twin = copy.deepcopy(t)
        part = copy.deepcopy(t[:, :20])
        t[:, :20] = 0.0
        assert type(twin) is vmm.KVTensor
        assert twin.device == t.device
        assert twin.length == 20
        assert torch.equal(twin[:, :20], values)
        assert torch.equal(part, values)
        assert torch.equal(twin[:, :20].cpu(), values.cpu())


@on_device
def test_dlpack_shares_the_memory():
    with pool_of(4) as pool:
        t = tensor_of(pool, 2)
        part = t[:, :5]
        other = torch.from_dlpack(part)
        other[0, 2] = 8.0
        assert other.data_ptr() == part.data_ptr()
        assert t[0, 2].eq(8).all()
        del part
        t.release(0, 32, stream=here())
        assert other[0, 2].eq(8).all()  # it keeps its memory
