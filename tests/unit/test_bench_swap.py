"""``vmm bench swap``: what it reports, and what it refuses. No test asserts a time."""

import pytest

from vmm import _core
from vmm.benchmarks import swap, swap_engine
from vmm.errors import InvalidArgument


@pytest.fixture(autouse=True)
def small(monkeypatch, tmp_path):
    monkeypatch.setattr(swap, "TOTAL_BYTES", 4 << 20)
    monkeypatch.setattr(swap, "PAIRS", 2)
    monkeypatch.setattr(swap_engine, "PAIRS", 1)
    monkeypatch.setattr(swap_engine, "BUDGET_BYTES", 16 << 20)
    monkeypatch.setattr(swap_engine, "PHASES", 2)
    monkeypatch.setattr(swap_engine, "ITERATIONS", 30)
    monkeypatch.setenv("VMM_SWAP_FOLDER", str(tmp_path))


def test_all_ratios_are_reported_and_all_pages_verified(tmp_path):
    report = swap.run(lambda stage: None, "cpu")
    ratios = {
        f"{ratio}{suffix}"
        for suffix in ("", "_64kib")
        for way in ("out", "in")
        for ratio in (f"host_{way}_ratio", f"host_{way}_whole_ratio", f"nvme_{way}_ratio")
    }
    engine = {"evict_clean_page_ratio", "step_slowdown_while_swapping", "swapped_while_stepping_gb_s"}
    assert report.metrics.keys() == ratios | engine | {"nvme_direct", "verified_pages"}
    assert all(report.metrics[metric] > 0 for metric in engine)
    assert all(report.metrics[ratio] > 0 for ratio in ratios)
    # Both stores, three rounds of 4 MiB, in pages of either size.
    assert report.metrics["verified_pages"] == 2 * 3 * (2 + 64)
    assert len(report.peers) == len(ratios)
    assert not list(tmp_path.iterdir())


def test_a_folder_that_is_not_there_is_named(monkeypatch, tmp_path):
    monkeypatch.setenv("VMM_SWAP_FOLDER", str(tmp_path / "none"))
    with pytest.raises(InvalidArgument, match=r"directory: .*none"):
        swap.run(lambda stage: None, "cpu")


def test_a_store_gives_back_what_was_written():
    empty = bytes(swap.TOTAL_BYTES)
    page = swap.Memory()
    before = bytes(page.map)
    assert before != empty
    store = _core.TierStore.host(capacity=4 << 20, slot=64 << 10)
    slots = store.take(64)
    store.write(slots, page.address)
    page.map[:] = empty
    store.read(slots, page.address)
    assert bytes(page.map) == before
    with pytest.raises(InvalidArgument, match="slot: "):
        store.write(slots, page.address)
    assert store.take(1) == []
    with pytest.raises(InvalidArgument, match="slot: 99"):
        store.read([*slots, (99, 1)], page.address)
    assert store.figures()["pending"] == 0
    store.give_back(slots)
    assert store.figures()["free"] == 64
    assert store.close() == 0
