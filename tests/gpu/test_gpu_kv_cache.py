"""KVCache: slots that grow, are handed on, and run out."""

from unittest import SkipTest  # which pytest knows

import torch
from gpu_device import (
    DEVICE,
    SLEEP_CYCLES,
    here,
    on_cuda,
    on_device,
    page_bytes,
    pattern,
    pool_of,
    raised,
    synchronize,
)
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

import vmm

LAYERS, HEADS, DIM = 2, 4, 64
TOKEN_BYTES = LAYERS * 2 * HEADS * DIM * 2


def cache_of(pool: vmm.Pool, sequences: int, **options) -> vmm.KVCache:
    """Of up to four pages a sequence, in float16."""
    return vmm.KVCache(
        LAYERS,
        HEADS,
        DIM,
        torch.float16,
        max_tokens=4 * tokens_of_page(),
        max_sequences=sequences,
        pool=pool,
        layers_per_extent=LAYERS,
        **options,
    )


def tokens_of_page() -> int:
    return page_bytes() // TOKEN_BYTES


def step(cache: vmm.KVCache, *wanted: tuple[vmm.kv_cache.Sequence, int], stream=None) -> None:
    slots = torch.tensor([sequence.slot for sequence, _ in wanted], dtype=torch.int32)
    cache.step(slots, torch.tensor([length for _, length in wanted], dtype=torch.int32), stream)


def write(sequence: vmm.kv_cache.Sequence, start: int, seed: int) -> torch.Tensor:
    """[layers, 2, tokens, heads, dim], now the sequence's from ``start`` on."""
    count = sequence.length - start
    new = pattern(LAYERS, 2, count, HEADS, DIM, seed=seed).half()
    for layer in range(LAYERS):
        for view, states in zip(sequence.kv(layer), new[layer], strict=True):
            view[view.shape[0] - count :] = states
    return new


def content(sequence: vmm.kv_cache.Sequence) -> torch.Tensor:
    return torch.stack([torch.stack(sequence.kv(layer)) for layer in range(LAYERS)])


@on_device
def test_sequences_come_grow_and_go() -> None:
    page = tokens_of_page()
    with pool_of(16) as pool, cache_of(pool, 3) as cache:
        expected: dict[vmm.kv_cache.Sequence, torch.Tensor] = {}
        for number in range(12):
            if len(expected) == 3:
                oldest = next(iter(expected))
                del expected[oldest]
                oldest.close()
            sequence = cache.open(page)
            expected[sequence] = torch.empty(LAYERS, 2, 0, HEADS, DIM, dtype=torch.float16, device=DEVICE)
            grown = [1, page // 2 + 1, 1][: len(expected)]
            lengths = {each: each.length + more for each, more in zip(expected, grown, strict=True)}
            step(cache, *lengths.items())
            for each, before in expected.items():
                new = write(each, before.shape[2], seed=100 * number + each.slot)
                expected[each] = torch.cat((before, new), dim=2)
            for each, held in expected.items():
                assert torch.equal(content(each), held)
        cache.end()


@on_device
def test_attention_over_a_slot_is_attention_over_a_copy() -> None:
    with pool_of(8) as pool, cache_of(pool, 2) as cache:
        cache.open()
        sequence = cache.open()
        step(cache, (sequence, tokens_of_page() + 3))
        write(sequence, 0, seed=1)
        q = pattern(1, HEADS, 1, DIM, seed=2).half()
        k, v = (each.transpose(0, 1).unsqueeze(0) for each in sequence.kv(1))
        attend = torch.nn.functional.scaled_dot_product_attention
        assert torch.allclose(attend(q, k, v), attend(q, k.contiguous(), v.contiguous()), rtol=1e-2)


@on_device
def test_running_out_names_those_that_fit() -> None:
    page = tokens_of_page()
    with pool_of(5) as pool, cache_of(pool, 3) as cache:
        first, second = cache.open(), cache.open()
        step(cache, (first, 2 * page), (second, 2 * page))
        new = write(first, 0, seed=1)
        error = raised(vmm.OutOfPages, lambda: step(cache, (second, 4 * page), (first, 3 * page)))
        assert error.fitting == (first.slot,)
        del error
        second.close()
        step(cache, (first, 4 * page))
        assert torch.equal(content(first)[:, :, : 2 * page], new)


@on_device
def test_a_window_passes() -> None:
    page = tokens_of_page()
    with pool_of(8) as pool, cache_of(pool, 1, window=page // 8) as cache:
        sequence = cache.open()
        for length in range(page // 2, 4 * page + 1, page // 2):
            step(cache, (sequence, length))
            new = write(sequence, length - page // 2, seed=length)
            assert torch.equal(content(sequence)[:, :, -(page // 2) :], new)
        needed = page // 8 + 256 + page // 2  # a window, a kernel's tile, the last step
        assert pool.stats().kept_bytes <= needed * TOKEN_BYTES + 2 * page_bytes()


@on_cuda
def test_a_slot_that_is_still_read_is_not_overwritten() -> None:
    """The next sequence of a slot waits for the kernels of the last: on their own stream by order, on another
    by the cache."""
    page = tokens_of_page()
    with pool_of(8) as pool, cache_of(pool, 1) as cache:
        streams = [torch.cuda.Stream(), torch.cuda.Stream()]
        for seed, stream in enumerate([*streams, streams[1]]):
            sequence = cache.open(page, stream=stream)
            with torch.cuda.stream(stream):
                step(cache, (sequence, page), stream=stream)
                written = write(sequence, 0, seed)
                torch.cuda._sleep(SLEEP_CYCLES)
                read = content(sequence)
                cache.end(stream)
            sequence.close(stream)
            later = cache.open(page, stream=streams[0])
            with torch.cuda.stream(streams[0]):
                step(cache, (later, page), stream=streams[0])
                write(later, 0, seed=1000)
                cache.end(streams[0])
            later.close(streams[0])
            synchronize()
            assert torch.equal(read, written)


@on_cuda
def test_a_graph_decodes_into_memory_that_was_mapped_after_its_capture() -> None:
    page = tokens_of_page()
    with pool_of(8) as pool, cache_of(pool, 2) as cache:
        cache.open()
        sequence = cache.open()
        step(cache, (sequence, 1))
        k = cache.kv(1)[0][sequence.slot]
        at, token = torch.tensor([0], device=DEVICE), torch.zeros(1, HEADS, DIM, device=DEVICE).half()

        def work() -> None:
            k.index_copy_(0, at, token)

        work()  # kernels are loaded before a capture
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            work()
            raised(vmm.InvalidArgument, lambda: step(cache, (sequence, 2), stream=here()))
        for length in (2, page, page + 1, 4 * page):
            step(cache, (sequence, length))
            at.fill_(length - 1)
            token.copy_(pattern(1, HEADS, DIM, seed=length))
            graph.replay()
            synchronize()
            assert torch.equal(sequence.kv(1)[0][-1:], token)


@on_cuda
def test_attention_far_into_a_sequence_reads_the_right_tokens() -> None:
    """Kernels that compute (row x stride) in 32 bits: all 32 layers of Llama-3-8B in one record overflow at
    token 32,768. The default layout has fewer in one."""
    tokens, needed = 40_000, 8 * 2**30
    if torch.cuda.mem_get_info()[0] < 2 * needed:
        raise SkipTest("needs 16 GiB of free GPU memory")
    with (
        vmm.Pool(needed, device=DEVICE) as pool,
        vmm.KVCache(32, 8, 128, torch.float16, max_tokens=tokens, max_sequences=1, pool=pool) as cache,
    ):
        sequence = cache.open(tokens)
        step(cache, (sequence, tokens))
        for layer in (0, 31):
            k, v = sequence.kv(layer)
            k.copy_(torch.randn_like(k))
            v.copy_(torch.randn_like(v))
            k, v = (each.transpose(0, 1).unsqueeze(0) for each in (k, v))
            q = torch.randn(1, 8, 1, 128, dtype=torch.float16, device=DEVICE)
            mask = torch.zeros(1, 1, 1, tokens, dtype=torch.float16, device=DEVICE)
            mask[..., :39_900] = -torch.inf  # only what lies beyond 2^31 elements in the old layout
            for backend in (SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH):
                with sdpa_kernel(backend):
                    found = scaled_dot_product_attention(q, k, v, attn_mask=mask)
                    expected = scaled_dot_product_attention(q, k.contiguous(), v.contiguous(), attn_mask=mask)
                assert torch.allclose(found, expected, atol=1e-2), backend
