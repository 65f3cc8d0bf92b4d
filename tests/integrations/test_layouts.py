"""Which layout is chosen, and the one that the others' tests never get: token-major."""

import pytest
import torch
from own_pool import FewMappings
from tiny import (
    assert_in_place,
    assert_same_states,
    cache_for,
    filled,
    generate,
    left_padding,
    model_of,
    prompt,
)
from transformers import DynamicCache

from vmm import InvalidArgument
from vmm.integrations.transformers.memory import CacheMemory
from vmm.limits import fits_mappings
from vmm.records import part_of_one


@pytest.fixture
def token_major(monkeypatch):
    monkeypatch.setattr(CacheMemory, "layout", lambda memory, batch, heads: "token-major")


@pytest.mark.parametrize(("layout", "most"), [("head-major", 2 * 6 * 3 * 2), ("token-major", 2 * 6 * 3)])
def test_a_layout_fits_in_half_of_the_mappings(layout, most):
    """6 tensors of 3 rows of 2 heads."""
    extents = 6 * 3 * part_of_one(layout, 2, 16).extents
    assert fits_mappings(extents, max_mappings=2 * most)
    assert not fits_mappings(extents, max_mappings=2 * most - 1)
    assert fits_mappings(extents, max_mappings=0)


@pytest.mark.host_only
def test_the_choice_by_mappings(pool):
    """3 layers of 2 heads: 24 mappings a row head-major, 12 token-major."""
    cache = cache_for(model_of(), pool)
    pool._core = FewMappings(pool._core, 2 * 48)
    memory = cache._memory
    assert memory.layout(2, 2) == "head-major"
    assert memory.layout(3, 2) == "token-major"
    assert memory.layout(4, 2) == "token-major"
    with pytest.raises(InvalidArgument, match=r"batch is 5: .* 48 memory mappings, half .* vm.max_map_count"):
        memory.layout(5, 2)


def test_what_cannot_fit_is_refused_at_once(pool):
    pool._core = FewMappings(pool._core, 23)
    with pytest.raises(InvalidArgument, match=r"vm\.max_map_count"):
        cache_for(model_of(), pool)


@pytest.mark.parametrize("layout", ["head-major", "token-major"])
def test_no_two_elements_share_a_place(layout):
    batch, heads, tokens, dim = 2, 3, 5, 4
    part = part_of_one(layout, heads, dim)
    extent_elements = 5 * part.record + 7
    rows, records, columns, last = part.strides(extent_elements, dim)
    size = extent_elements * batch * part.extents
    places = torch.arange(size).as_strided((batch, heads, tokens, dim), (rows, columns, records, last))
    assert places.unique().numel() == batch * heads * tokens * dim
    assert last == 1
    # A token's record lies in one piece in each extent, the next token's right behind it.
    offsets = places % extent_elements
    assert torch.equal(offsets // part.record, torch.arange(tokens)[None, None, :, None].expand_as(offsets))


@pytest.mark.usefixtures("token_major")
@pytest.mark.parametrize("batch", [1, 3])
def test_token_major_generates_the_same(pool, batch):
    model, ids = model_of(), prompt(20, batch)
    cache, stock = cache_for(model, pool), DynamicCache(config=model.config)
    output = generate(model, cache, ids, left_padding(ids), max_new_tokens=100)
    expected = generate(model, stock, ids, left_padding(ids), max_new_tokens=100)
    assert torch.equal(output.sequences, expected.sequences)
    for scores, wanted in zip(output.scores, expected.scores, strict=True):
        torch.testing.assert_close(scores, wanted, rtol=1e-4, atol=1e-4)
    assert cache.stats().layout == "token-major"
    assert cache.layers[0].keys.stride() == (cache.layers[0].keys.stride(0), 16, 32, 1)
    assert_in_place(cache)


@pytest.mark.usefixtures("token_major")
def test_token_major_keeps_the_contract(pool):
    cache, stock = cache_for(model_of(), pool), DynamicCache(config=model_of().config)
    for each in (cache, stock):
        filled(each, 150, 3)
        each.crop(-20)
        each.reorder_cache(torch.tensor([2, 0, 1]))
        each.batch_select_indices(torch.tensor([0, 2]))
        filled(each, 60, 2, seed=20)
        each.batch_repeat_interleave(2)
    assert_same_states(cache, stock)


@pytest.mark.usefixtures("token_major")
def test_records_that_straddle_pages(pool):
    """3 heads of 24 floats: 288 bytes a token, and no whole number of them in a page."""
    cache = cache_for(model_of(), pool)
    parts = [
        torch.randn(1, 3, tokens, 24, generator=torch.Generator().manual_seed(tokens))
        for tokens in (9, 5, 1, 40, 1)
    ]
    for part in parts * 3:
        keys, values = cache.update(part, -part, 0)
    assert torch.equal(keys, torch.cat(parts * 3, dim=2))
    assert torch.equal(values, -keys)
    cache.crop(-21)
    assert torch.equal(cache.layers[0].keys, keys[:, :, :-21])
