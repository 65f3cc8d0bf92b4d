"""CUDA graphs over tensors that grow: addresses stay, and mapping does not disturb a capture."""

import threading
import time

import torch
from gpu_device import DEVICE, on_cuda, pattern, pool_of, raised, synchronize, tensor_of

import vmm
from vmm.dlpack import tensor_over

PAGES = 4


def captured(work) -> torch.cuda.CUDAGraph:
    """A graph of ``work``, captured as torch does by default: in GLOBAL mode."""
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        work()
    return graph


@on_cuda
def test_a_graph_replays_over_a_tensor_that_has_grown():
    with pool_of(2 * PAGES) as pool:
        t = tensor_of(pool, 2 * PAGES)
        t.reserve(16)
        part, token = t[:, 3:9], torch.zeros(1, 6, t.shape[2], device=DEVICE)
        seen = torch.empty_like(token)

        def work() -> None:
            part.copy_(token)
            part.mul_(2)
            seen.copy_(part)

        work()  # kernels are loaded before a capture
        graph = captured(work)
        address = t.data_ptr()
        rest = pattern(1, 100, t.shape[2], seed=1)
        t[:, 16:116] = rest
        for seed in range(3):
            token.copy_(pattern(*token.shape, seed=seed))
            graph.replay()
            synchronize()
            assert torch.equal(seen, 2 * token)
            assert torch.equal(t[:, 3:9], 2 * token)
        assert torch.equal(t[:, 16:116], rest)
        assert t.data_ptr() == address


@on_cuda
def test_a_graph_reaches_what_was_mapped_after_its_capture():
    """The row to write comes from the device; the graph was captured with one page mapped."""
    with pool_of(2 * PAGES) as pool:
        lease = pool._core.reserve(
            page_bytes=pool.default_page_bytes, extent_bytes=PAGES * pool.default_page_bytes, extents=1
        )
        lease.map([(0, 1)])
        record = pool.default_page_bytes // 16 // 4
        whole = tensor_over(lease, torch.float32, shape=(16 * PAGES, record), strides=(record, 1))
        row, token = torch.tensor([5], device=DEVICE), torch.zeros(1, record, device=DEVICE)

        def work() -> None:
            whole.index_copy_(0, row, token)

        work()
        graph = captured(work)
        lease.map([(1, PAGES - 1)])
        for at in (0, 17, 16 * PAGES - 1):
            row.fill_(at)
            token.copy_(pattern(1, record, seed=at))
            graph.replay()
            synchronize()
            assert torch.equal(whole[at : at + 1], token)


def _during_a_capture(disturb) -> None:
    """``disturb(pool, tensor)`` between two captured kernels; the graph must be as if nothing happened."""
    with pool_of(20) as pool:
        t, other = tensor_of(pool, PAGES), tensor_of(pool, 8)
        t.reserve(16)
        other.reserve(1)
        part, token = t[:, :16], pattern(1, 16, t.shape[2])
        part.copy_(token)
        synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, capture_error_mode="global"):
            part.add_(1)
            disturb(pool, other)
            part.add_(1)
        graph.replay()
        synchronize()
        assert torch.equal(t[:, :16], token + 2)


@on_cuda
def test_mapping_during_a_capture():
    def grow(pool: vmm.Pool, tensor: vmm.KVTensor) -> None:
        before = pool.stats().mapped_bytes
        tensor.reserve(5 * 16)
        assert pool.stats().mapped_bytes > before

    _during_a_capture(grow)


@on_cuda
def test_mapping_from_another_thread_during_a_capture():
    def grow(pool: vmm.Pool, tensor: vmm.KVTensor) -> None:
        thread = threading.Thread(target=lambda: tensor.reserve(5 * 16))
        thread.start()
        thread.join()
        assert tensor.mapped_bytes >= 5 * pool.default_page_bytes

    _during_a_capture(grow)


@on_cuda
def test_the_pager_maps_during_a_capture():
    def grow(pool: vmm.Pool, tensor: vmm.KVTensor) -> None:
        before = pool.stats().pages_mapped_ahead
        tensor[:, 16:20]  # maps the second page; the pager, on its thread, the third
        deadline = time.monotonic() + 5
        while pool.stats().pages_mapped_ahead == before and time.monotonic() < deadline:
            time.sleep(0.001)
        assert pool.stats().pages_mapped_ahead > before

    _during_a_capture(grow)


@on_cuda
def test_a_tensor_that_dies_during_a_capture():
    def let_go(pool: vmm.Pool, tensor: vmm.KVTensor) -> None:
        dying = tensor_of(pool, 2)
        dying.reserve(32)
        del dying
        pool.trim()

    _during_a_capture(let_go)


@on_cuda
def test_a_capturing_stream_cannot_be_waited_for():
    def release(pool: vmm.Pool, tensor: vmm.KVTensor) -> None:
        stream = torch.cuda.current_stream()
        error = raised(vmm.InvalidArgument, lambda: tensor.release(0, 16, stream=stream))
        assert "captured" in str(error)

    _during_a_capture(release)
