"""KVTensor and VmmCache where torch's work outlasts its calls: on the stand-in, told that it is so, with a
stream of its own in the place of torch's current one."""

import ctypes
from types import SimpleNamespace

import cuda_standin
import pytest
import torch
from cuda_calls import SUCCESS
from transformers import LlamaConfig

import vmm
import vmm.stream
from vmm import KVCache, KVTensor
from vmm.integrations.transformers import VmmCache
from vmm.testing import settle

PAGE = 65536


@pytest.fixture
def gpu(standin, cuda, monkeypatch):
    """A pool on the stand-in, and torch's "current stream" on it."""
    stream = cuda.get_number("cuStreamCreate", 1)
    cuda_standin.shown_as_cpu(monkeypatch.setattr)
    monkeypatch.setattr(vmm.stream, "_current_stream", lambda ordinal: stream)
    pool = vmm.Pool("4MiB", lookahead_pages=0)
    pool._runs_late = True

    def work(tensor):
        """Work that reads ``tensor``: the list is empty until it runs, then has the first number."""
        seen = []
        reads = [(tensor.data_ptr(), tensor.numel() * tensor.itemsize)]
        first = ctypes.c_float.from_address(tensor.data_ptr())
        assert standin.launch(stream, lambda: seen.append(first.value), reads=reads) == SUCCESS
        return seen

    yield SimpleNamespace(pool=pool, standin=standin, stream=stream, work=work)
    standin.sync_all()
    pool.check()
    pool.close()
    cuda.do("cuStreamDestroy", stream)


def tensor(gpu, tokens=512):
    made = KVTensor(1, 1024, 64, pool=gpu.pool, page_bytes=PAGE)  # 256 tokens a page
    made.append(torch.ones(1, tokens, 64))
    return made


@pytest.mark.parametrize("ends", ["release", "truncate", "close", "dies"])
def test_a_tensor_s_memory_waits_for_torch(gpu, ends):
    t = tensor(gpu)
    over = gpu.work(t[0, :512])
    if ends == "release":
        t.release(0, 512)
    elif ends == "truncate":
        t.truncate(0)
    elif ends == "close":
        t.close()
    del t
    while gpu.pool.stats().mapped_bytes or gpu.pool.stats().retirements_waiting:
        settle(gpu.pool, still_seconds=0.005)
    assert over


def test_slices_outlive_what_they_were_cut_from(gpu):
    t = tensor(gpu)
    piece = t[0, :256]
    over = gpu.work(piece)
    t.close()
    del piece
    settle(gpu.pool, still_seconds=0.005)
    gpu.pool.trim()
    assert over
    assert gpu.pool.stats().created_bytes == 0


def test_zeroing_is_ordered_with_torch_s_work(gpu):
    t = tensor(gpu)
    piece = t[0, :512]
    before = gpu.work(piece)
    t.zero_()
    after = gpu.work(piece)
    gpu.standin.sync_all()
    assert (before, after) == ([1.0], [0.0])
    assert piece.eq(0).all()


class Marked(torch.Tensor):
    pass


OF_A_TENSOR = {
    "itself": lambda t: t,
    "a slice as a subclass": lambda t: t[:, :512].as_subclass(Marked),
    "a view": lambda t: t.transpose(0, 1),
    "a slice": lambda t: t[:, :512],
    "a slice within a page": lambda t: t[0, 3:5],
    "a view of a slice": lambda t: t[:, :512].transpose(0, 1)[2:],
}


@pytest.mark.parametrize("what", OF_A_TENSOR)
def test_another_stream_is_recorded(gpu, what):
    t = tensor(gpu)
    other = gpu.pool._core.create_stream()
    over = []
    OF_A_TENSOR[what](t).record_stream(SimpleNamespace(cuda_stream=other))
    reads = [(t.data_ptr(), 512 * 256)]
    for _ in range(500):  # so that it is late
        gpu.standin.launch(other)
    assert gpu.standin.launch(other, lambda: over.append(True), reads=reads) == SUCCESS
    t.close()
    gpu.pool.trim()
    assert over
    gpu.pool._core.destroy_stream(other)


@pytest.mark.parametrize("by", ["the class", "a stream of torch", "an overload"])
def test_another_stream_is_recorded_by_other_names(gpu, by, monkeypatch):
    t, told = tensor(gpu), []
    monkeypatch.setattr(KVTensor, "record_stream", lambda self, s: told.append(s))
    if by == "the class":
        torch.Tensor.record_stream(t, stream := torch.Stream(device="cpu"))
        assert told == [stream]
    elif by == "an overload":
        torch.ops.aten.record_stream(t, stream := torch.Stream(device="cpu"))
        assert told == [stream]
    else:
        stream = type("Stream", (), {"native_handle": 7})()
        assert vmm.stream.handle_of(stream) == 7
        with pytest.raises(vmm.InvalidArgument):
            vmm.stream.handle_of(torch.Stream(device="cpu"))


@pytest.mark.parametrize("what", ["KVCache", "a sequence", "VmmCache"])
def test_another_stream_is_recorded_by_what_a_cache_shows(gpu, what):
    other = gpu.pool._core.create_stream()
    if what == "VmmCache":
        cache = VmmCache(config(), pool=gpu.pool)
        k = cache.update(*states(300), 0)[0]
    else:
        cache = KVCache(1, 2, 64, torch.float32, max_tokens=1024, max_sequences=1, pool=gpu.pool)
        sequence = cache.open(300)
        cache.step(torch.tensor([sequence.slot], dtype=torch.int32), torch.tensor([300], dtype=torch.int32))
        k = cache.kv(0)[0] if what == "KVCache" else sequence.kv(0)[0]
        cache.end()
    over = []
    k.transpose(0, 1).record_stream(SimpleNamespace(cuda_stream=other))
    reads = [(k.data_ptr(), 256)]
    for _ in range(500):
        gpu.standin.launch(other)
    assert gpu.standin.launch(other, lambda: over.append(True), reads=reads) == SUCCESS
    if what == "VmmCache":
        del cache, k
    else:
        cache.close()
        del cache, sequence, k
    gpu.pool.trim()
    assert over
    gpu.pool._core.destroy_stream(other)


def test_other_tensors_are_torch_s_to_record(gpu):
    with pytest.raises((NotImplementedError, RuntimeError)):
        torch.ones(1).record_stream(torch.Stream(device="cpu"))
    with pytest.raises(vmm.InvalidArgument, match="stream"):
        tensor(gpu)[:, :3].record_stream("no stream")


def states(tokens=300):
    return torch.ones(1, 2, tokens, 64), torch.ones(1, 2, tokens, 64)


def config():
    return LlamaConfig(
        num_hidden_layers=1, num_attention_heads=2, hidden_size=128, max_position_embeddings=1024
    )


def test_a_dead_cache_is_adopted_by_the_next_on_the_same_stream(gpu):
    cache = VmmCache(config(), pool=gpu.pool)
    cache.update(*states(), 0)
    gpu.work(cache.layers[0].keys[:, 0])
    del cache
    cache = VmmCache(config(), pool=gpu.pool)
    cache.update(*states(), 0)
    assert gpu.pool.stats().reservations_adopted == 2


def test_every_stream_that_updates_is_waited_for(gpu, monkeypatch):
    cache = VmmCache(config(), pool=gpu.pool)
    cache.update(*states(300), 0)
    other = gpu.pool._core.create_stream()
    monkeypatch.setattr(vmm.stream, "_current_stream", lambda ordinal: other)
    cache.update(*states(1), 0)  # no new page
    seen = []
    reads = [(cache.layers[0].keys.data_ptr(), 512)]
    for _ in range(500):  # so that it is late
        gpu.standin.launch(other)
    assert gpu.standin.launch(other, lambda: seen.append(True), reads=reads) == SUCCESS
    del cache
    gpu.pool.trim()
    assert seen
    gpu.pool._core.destroy_stream(other)


def test_cropped_tokens_wait_for_torch(gpu):
    cache = VmmCache(config(), pool=gpu.pool)
    cache.update(*states(600), 0)
    over = gpu.work(cache.layers[0].keys[:, 0, 300:])
    cache.crop(-590)
    budget = gpu.pool.budget_bytes
    other = KVTensor(1, 2**30 // 256, 64, pool=gpu.pool, page_bytes=PAGE)
    other.reserve((budget - gpu.pool.stats().kept_bytes) // 256)  # all there is
    assert over
    other.close()


class Foreign:
    """A stream of another library."""

    def __init__(self, version, handle):
        self.answer = version, handle

    def __cuda_stream__(self):
        return self.answer


def test_what_a_stream_may_be():
    assert vmm.stream.handle_of(Foreign(0, 5)) == 5
    assert vmm.stream.handle_of(SimpleNamespace(cuda_stream=6)) == 6
    assert vmm.stream.handle_of(7) == 7
    for bad in (Foreign(1, 5), Foreign(0, "5"), SimpleNamespace(), True, -1, 2**64, None):
        with pytest.raises(vmm.InvalidArgument, match="stream"):
            vmm.stream.handle_of(bad)


def test_a_foreign_stream_is_waited_for(gpu):
    t = tensor(gpu)
    other = gpu.pool._core.create_stream()
    seen = []
    reads = [(t.data_ptr(), 512 * 256)]
    assert gpu.standin.launch(other, lambda: seen.append(True), reads=reads) == SUCCESS
    t.close(stream=Foreign(0, other))
    gpu.pool.trim()
    assert seen
    gpu.pool._core.destroy_stream(other)
