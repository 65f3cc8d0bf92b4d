"""Where elements lie: the address arithmetic of layouts, element by element, and what kernels are given."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from own_pool import int32

from vmm import KVCache
from vmm.records import LayerShape, Part, head_major, token_major, tokens_of_extent

SHAPES = st.lists(st.builds(LayerShape, st.integers(1, 4), st.integers(1, 6)), min_size=1, max_size=4)
KINDS = [{"layout": "head-major"}, *({"layers_per_extent": layers} for layers in (1, 2, 3))]


def places_of(view, base):
    """The address of every element, as a tensor like ``view``."""
    where = torch.full(view.shape, (view.data_ptr() - base) // view.itemsize)
    for axis, (size, stride) in enumerate(zip(view.shape, view.stride(), strict=True)):
        where += (torch.arange(size) * stride).reshape([-1 if i == axis else 1 for i in range(view.dim())])
    return where


@given(shapes=SHAPES, data=st.data())
@settings(deadline=None)
def test_a_record_is_filled_without_gaps_or_overlaps(shapes, data):
    group = data.draw(st.integers(1, len(shapes)))
    for records in (token_major(shapes, group), head_major(shapes)):
        used = [[0] * (part.extents * part.record) for part in records.parts]
        assert len(records.layers) == len(shapes)
        for shape, pair in zip(shapes, records.layers, strict=True):
            for where in pair:
                assert (where.heads, where.dim) == (shape.kv_heads, shape.head_dim)
                for head in range(where.heads):
                    start = where.offset + head * where.dim
                    for i in range(start, start + where.dim):
                        used[where.part][i] += 1
        assert all(set(counts) == {1} for counts in used)
        extents = sum(part.extents for part in records.parts)
        assert extents == (
            math.ceil(len(shapes) / group)
            if records.name == "token-major"
            else sum(2 * shape.kv_heads for shape in shapes)
        )


@given(
    record=st.integers(1, 100_000),
    itemsize=st.sampled_from([1, 2, 4, 8]),
    page=st.integers(12, 21).map(lambda bits: 2**bits),
    tokens=st.integers(1, 2**20),
)
def test_an_extent_is_the_least_whole_number_of_pages_and_records(record, itemsize, page, tokens):
    found = tokens_of_extent(Part(1, record), tokens, itemsize, page)
    size = record * itemsize
    assert found >= tokens
    assert found * size % page == 0
    unit = math.lcm(size, page) // size
    assert found - unit < tokens


@pytest.fixture(params=KINDS, ids=lambda kind: "-".join(map(str, kind.values())))
def cache(pool, request):
    with KVCache(
        3,
        (3, 1, 2),
        (5, 7, 12),
        torch.float32,
        max_tokens=70,
        max_sequences=3,
        pool=pool,
        page_bytes=4096,
        **request.param,
    ) as cache:
        yield cache
        cache.end()


def test_no_two_elements_share_a_place(cache):
    leases = cache._leases
    seen = []
    for layer in range(3):
        for where, view in zip(cache._records.layers[layer], cache.kv(layer), strict=True):
            lease = leases[where.part]
            assert view.stride(-1) == 1
            assert view.shape[0] == 3
            assert view.shape[1] == cache.tokens_per_slot >= 70
            assert view.shape[2:] == ((3, 5), (1, 7), (2, 12))[layer]
            places = places_of(view, lease.address)
            assert places.min() >= 0
            assert 4 * (places.max() + 1) <= lease.size
            per_slot = lease.extent_bytes // 4 * cache._records.parts[where.part].extents
            slots = torch.arange(3).reshape(3, 1, 1, 1)
            assert torch.equal(places // per_slot, slots.expand_as(places))
            seen.append(places.flatten() + where.part * 2**40)
    everything = torch.cat(seen)
    assert everything.unique().numel() == everything.numel()


def test_the_pages_of_a_slot_hold_its_first_tokens(cache):
    """In each extent the records of tokens [0, n) come first: what the engine maps for n tokens."""
    for layer in range(3):
        for where, view in zip(cache._records.layers[layer], cache.kv(layer), strict=True):
            part, lease = cache._records.parts[where.part], cache._leases[where.part]
            inside = places_of(view, lease.address) % (lease.extent_bytes // 4)
            token = torch.arange(view.shape[1]).reshape(1, -1, 1, 1)
            assert torch.equal(inside // part.record, token.expand_as(inside))


def numbered(like, sequence, which):
    """A number for each element of a sequence's K or V, different from all others."""
    return torch.arange(like.numel()).reshape(like.shape) + 1e5 * (6 * sequence + which)


@pytest.fixture
def filled(cache):
    """Three sequences of 40, 1 and 70 tokens."""
    sequences = [cache.open() for _ in range(3)]
    for number, (sequence, length) in enumerate(zip(sequences, (40, 1, 70), strict=True)):
        cache.step(int32(sequence.slot), int32(length))
        for layer in range(3):
            for which, part in enumerate(sequence.kv(layer), start=2 * layer):
                part.copy_(numbered(part, number, which))
    return sequences


def test_a_batch(cache, filled):
    batch = cache.batch([filled[2], filled[0], filled[1]])
    assert {tensor.dtype for tensor in (batch.slots, batch.lengths, batch.starts)} == {torch.int32}
    assert batch.lengths.tolist() == [70, 40, 1]
    assert batch.slots.tolist() == [filled[i].slot for i in (2, 0, 1)]
    each = cache.tokens_per_slot
    assert batch.starts.tolist() == [*(each * slot for slot in batch.slots.tolist()), 3 * each]


def test_what_kernels_are_given_finds_every_token(cache, filled):
    if cache.stats().layout == "head-major":
        pytest.skip("slots are no one tensor")
    batch = cache.batch([filled[2], filled[0], filled[1]])
    for layer in range(3):
        for which, view in enumerate(cache.kv(layer), start=2 * layer):
            flat = view.flatten(0, 1)
            assert flat.data_ptr() == view.data_ptr()
            assert flat.shape[0] == batch.starts[-1]
            for i, number in enumerate((2, 0, 1)):
                tokens = range(batch.starts[i], batch.starts[i] + batch.lengths[i])
                gathered = torch.stack([flat[token] for token in tokens])
                assert torch.equal(gathered, numbered(gathered, number, which)), layer


def test_an_empty_batch(cache):
    batch = cache.batch([])
    assert batch.slots.shape == batch.lengths.shape == (0,)
    assert batch.starts.tolist() == [3 * cache.tokens_per_slot]
