"""Rows and layouts: arithmetic alone."""

from types import SimpleNamespace

import pytest

from vmm.integrations.vllm.layout import Layout, layout_of
from vmm.integrations.vllm.rows import Rows

KIB, MIB = 2**10, 2**20


def tensor(layers, layer_stride, block_stride, *, offset=0, size=64 * MIB, host_resident=False):
    return SimpleNamespace(
        layers=[f"layer{number}" for number in range(layers)], layer_stride=layer_stride,
        block_stride=block_stride, offset=offset, size=size, host_resident=host_resident,
    )  # fmt: skip


def config(*tensors, num_blocks=100):
    return SimpleNamespace(kv_cache_tensors=tensors, num_blocks=num_blocks, kv_cache_layout="LBHNC")


def test_layer_outermost_blocks_lie_once_in_each_layer():
    layout = layout_of(config(tensor(3, 100 * 64 * KIB, 64 * KIB, size=300 * 64 * KIB)))
    assert layout == Layout(300 * 64 * KIB, (0, 6400 * KIB, 12800 * KIB), 64 * KIB, 100)
    assert layout.reach == layout.size


def test_groups_that_overlay_each_other_are_one_stretch():
    one = tensor(2, 6400 * KIB, 64 * KIB)
    other = tensor(2, 6400 * KIB, 64 * KIB)
    assert layout_of(config(one, other)).starts == (0, 6400 * KIB)


def test_block_outermost_layers_are_packed_into_one_stretch():
    packed = [tensor(4, 64 * KIB, 512 * KIB), tensor(2, 128 * KIB, 512 * KIB, offset=256 * KIB)]
    assert layout_of(config(*packed, num_blocks=64)) == Layout(64 * MIB, (0,), 512 * KIB, 64)


@pytest.mark.parametrize(
    ("tensors", "reason"),
    [
        ((), "no KV cache"),
        ((tensor(1, 6400, 64, host_resident=True),), "HiSparse"),
        ((tensor(1, 6400, 64), tensor(1, 12800, 128)), "VLLM_KV_CACHE_LAYOUT=BLHNC"),
        ((tensor(2, 12800, 64),), "not in one piece"),
        ((tensor(1, 6400, 64), tensor(1, 6400, 64, size=1)), "different sizes"),
    ],
)
def test_what_cannot_be_placed_is_refused_with_the_reason(tensors, reason):
    with pytest.raises(ValueError, match=reason):
        layout_of(config(*tensors))


@pytest.mark.parametrize("stride", [16 * KIB, 486 * KIB, 2 * MIB, 3 * MIB])
@pytest.mark.parametrize("starts", [(0,), (0, 100 * MIB), (0, 100 * MIB + 17 * KIB, 300 * MIB - 5)])
def test_bytes_of_counts_each_page_once(stride, starts):
    layout = Layout(400 * MIB, starts, stride, 30)
    for blocks in range(31):
        pages = set()
        for start in starts:
            for place in range(start, start + blocks * stride, KIB):
                pages.add(place // (2 * MIB))
            if blocks:
                pages.add((start + blocks * stride - 1) // (2 * MIB))
        assert layout.bytes_of(blocks, 2 * MIB) == len(pages) * 2 * MIB
        assert layout.blocks_within(len(pages) * 2 * MIB, 2 * MIB) >= blocks
    assert layout.blocks_within(layout.bytes_of(7, 2 * MIB) - 1, 2 * MIB) < 7


def test_rows_are_whole_pages_where_blocks_are_smaller():
    assert Layout(MIB, (0,), 16 * KIB, 64).blocks_in_row(64 * KIB) == 4
    assert Layout(MIB, (0,), 128 * KIB, 8).blocks_in_row(64 * KIB) == 1
    assert Layout(MIB, (0,), 16 * KIB, 2).blocks_in_row(64 * KIB) == 2


def test_the_null_block_is_never_asked_for():
    rows = Rows(blocks=10, row=4, capacity=10)
    assert list(rows.ask(1)) == [1, 2, 3]
    assert list(rows.ask(100)) == [4, 5, 6, 7, 8, 9]
    assert not rows.ask(1)
    assert (rows.asked, rows.room) == (9, 0)


def test_a_row_of_the_null_block_alone_does_not_stop_growth():
    assert list(Rows(blocks=4, row=1, capacity=4).ask(2)) == [1, 2]


def test_capacity_is_whole_rows():
    rows = Rows(blocks=100, row=4, capacity=11)
    assert rows.capacity == 8
    assert list(rows.ask(100)) == [1, 2, 3, 4, 5, 6, 7]


def test_refused_rows_are_absent_again_and_lower_rows_come_first():
    rows = Rows(blocks=100, row=4, capacity=100)
    ids = rows.ask(11)
    rows.answer(ids[3:7], True)
    rows.answer(ids[:3], False)
    rows.answer(ids[7:], False)
    assert (rows.present, rows.asked, rows.present_rows) == (4, 0, {1})
    assert list(rows.ask(1)) == [1, 2, 3]
    rows.give_back(1)
    assert rows.present == 0
    assert list(rows.ask(1)) == [4, 5, 6, 7]
