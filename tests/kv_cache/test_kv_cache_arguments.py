"""Caches that cannot be: bad arguments, each named, and more tokens or mappings than there can be."""

import pytest
import torch
from own_pool import FewMappings, int32, one_pool

from vmm import InvalidArgument, KVCache
from vmm.kv_cache.layout import chosen_records
from vmm.records import LayerShape, slot_elements

SHAPE = {"layers": 2, "kv_heads": 3, "head_dim": 5, "dtype": torch.float32}
KINDS = [{"layout": "head-major"}, {"layers_per_extent": 1}, {"layers_per_extent": 2}]
SIZE = {"max_tokens": 100, "max_sequences": 3, "page_bytes": 4096}

pool = pytest.fixture(one_pool, scope="module")


ARGUMENTS = {
    "layers": [0, -1, 1.0, None, "2", True, 2**16 + 1],
    "kv_heads": [0, -3, 2.5, None, "33", (3,), (3, 3, 3), (3, 0), (3, 2.0), True, 2**16 + 1],
    "head_dim": [0, -5, 2.5, None, "55", (5,), (5, 5, 5), (5, -1), True, 2**16 + 1],
    "dtype": [torch.int32, torch.complex64, torch.bool, "float32", None, []],
    "max_tokens": [0, -1, 1.0, None, 2**31, True],
    "max_sequences": [0, -1, 1.0, None, 2**20 + 1, True],
    "tail_tokens": [-1, 1.0, None, 2**16 + 1, True],
    "tokens_per_step": [0, -1, 1.0, None, 2**16 + 1, True],
    "layout": ["hnd", "", 1, True, []],
    "layers_per_extent": [0, 3, -1, 1.0, True, "1"],
    "page_bytes": [0, 4095, 6144, 2048, -4096, 2**50, 2**70, 4096.0, "4096", True],
    "pool": [1, "64MiB", object()],
}


@pytest.mark.parametrize(
    ("argument", "value"), [(argument, value) for argument, values in ARGUMENTS.items() for value in values]
)
def test_a_bad_argument(pool, argument, value):
    before = pool.stats()
    with pytest.raises(InvalidArgument, match=rf"^{argument}\b"):
        KVCache(**({**SHAPE, **SIZE, "pool": pool} | {argument: value}))
    assert pool.stats() == before


@pytest.mark.host_only
@pytest.mark.parametrize("device", ["meta", "cuda:x", "tpu", 0, "cpu:1"])
def test_a_bad_device(pool, device):
    for options in ({"pool": pool}, {"budget": "1MiB"}, {}):
        with pytest.raises(InvalidArgument, match=r"^device\b"):
            KVCache(**SHAPE, **SIZE, **options, device=device)


@pytest.mark.host_only
def test_another_device_than_the_pool_s(pool):
    with pytest.raises(InvalidArgument, match=r"^device is cuda:7; the pool is on"):
        KVCache(**SHAPE, **SIZE, pool=pool, device="cuda:7")


@pytest.mark.parametrize("budget", ["many", -1, 2**60, "", 1.5])
def test_a_bad_budget(budget):
    with pytest.raises(InvalidArgument, match=r"^budget"):
        KVCache(**SHAPE, **SIZE, budget=budget)


def test_arguments_that_exclude_each_other(pool):
    with pytest.raises(InvalidArgument, match=r"^budget and pool"):
        KVCache(**SHAPE, **SIZE, pool=pool, budget="1MiB")
    with pytest.raises(InvalidArgument, match=r"^layers_per_extent: .*token-major"):
        KVCache(**SHAPE, **SIZE, pool=pool, layout="head-major", layers_per_extent=1)


@pytest.mark.filterwarnings("ignore:max_tokens:RuntimeWarning")
def test_so_many_tokens_that_int32_cannot_count_them(pool):
    """One slot more is refused; the tail, and the rest of the last page, count."""
    shape = {"layers": 1, "kv_heads": 1, "head_dim": 1, "dtype": torch.float16, "layers_per_extent": 1}
    tokens = 2**30
    for slots, size in ((2, {"max_tokens": tokens}), (1, {"max_tokens": 2**31 - 1})):
        with pytest.raises(InvalidArgument, match=r"max_sequences x max_tokens: .* 2\^31"):
            KVCache(**shape, **size, max_sequences=slots, pool=pool, page_bytes=4096)
    with pytest.raises(InvalidArgument, match=r"max_sequences x max_tokens: .* 2\^31"):
        KVCache(**shape, max_tokens=tokens - 10, tail_tokens=10, max_sequences=2, pool=pool, page_bytes=4096)
    with KVCache(**shape, max_tokens=tokens - 1024, max_sequences=2, pool=pool, page_bytes=4096) as cache:
        assert 2 * cache.tokens_per_slot < 2**31
        last = cache.open(), cache.open()
        cache.step(int32(last[1].slot), int32(3))
        last[1].kv(0)[0][:] = 1.0


def test_steps_of_more_tokens_than_there_are(pool):
    """tokens_per_step is only a guess of what comes next."""
    with KVCache(**SHAPE, **(SIZE | {"max_tokens": 3}), tokens_per_step=4096, pool=pool) as cache:
        first, second = cache.open(), cache.open()
        cache.step(int32(first.slot, second.slot), int32(1, 3))
        assert cache.stats().sequences == 2


@pytest.mark.parametrize("tail", [0, 30])
@pytest.mark.parametrize("kind", KINDS)
def test_max_tokens_is_the_limit(pool, kind, tail):
    """Not what happens to fit into the pages."""
    with KVCache(**SHAPE, **SIZE, **kind, tail_tokens=tail, pool=pool) as cache:
        sequence = cache.open(100)
        with pytest.raises(InvalidArgument, match=r"lengths\[0\] is 101; max_tokens is 100"):
            cache.step(int32(sequence.slot), int32(101))
        cache.step(int32(sequence.slot), int32(100))
        with pytest.raises(InvalidArgument, match=r"lengths\[0\] is 101; max_tokens is 100"):
            cache.step(int32(sequence.slot), int32(101))
        assert sequence.kv(0)[0].shape == (100, 3, 5)


def elements(records):
    return slot_elements(records, 100, 4, 4096)


# 3 sequences of 2 layers of 3 heads: head-major 36 extents, token-major by layer 6, together 3.
MAPPINGS = {
    "head-major": ({"layout": "head-major"}, 72),
    "by layer": ({"layers_per_extent": 1}, 12),
    "all layers": ({"layers_per_extent": 2}, 6),
    "any": ({}, 6),
}


@pytest.mark.host_only
@pytest.mark.parametrize("name", MAPPINGS)
def test_more_mappings_than_a_process_may_have(pool, monkeypatch, name):
    kind, most = MAPPINGS[name]
    core = pool._core
    made = core.stats()["reservations_made"]
    monkeypatch.setattr(pool, "_core", FewMappings(core, 2 * most - 1))
    with pytest.raises(
        InvalidArgument, match=rf"max_sequences: .* {most - 1} memory mappings.*max_map_count"
    ):
        KVCache(**SHAPE, **SIZE, **kind, pool=pool)
    assert core.stats()["reservations_made"] == made
    monkeypatch.setattr(pool, "_core", FewMappings(core, 2 * most))
    layers = kind.get("layers_per_extent")
    chosen_records([LayerShape(3, 5)] * 2, kind.get("layout"), layers, pool, 3, slot_elements=elements)


@pytest.mark.host_only
@pytest.mark.parametrize(
    ("limit", "name", "parts"),
    [
        (0, "head-major", 4),
        (144, "head-major", 4),
        (143, "token-major", 2),
        (24, "token-major", 2),
        (23, "token-major", 1),
        (12, "token-major", 1),
    ],
)
def test_the_layout_follows_the_mappings(pool, monkeypatch, limit, name, parts):
    """3 sequences of 2 layers of 3 heads: 36 extents head-major, 6 by layer, 3 with all layers in one."""
    monkeypatch.setattr(pool, "_core", FewMappings(pool._core, limit))
    records = chosen_records([LayerShape(3, 5)] * 2, None, None, pool, 3, slot_elements=elements)
    assert (records.name, len(records.parts)) == (name, parts)
