"""``vmm bench replay`` and ``pages`` over small traces of our own."""

import math
from itertools import pairwise

import pytest
from conversations import conversations

from vmm.benchmarks import pages, replay, replay_prefixes
from vmm.errors import InvalidArgument


@pytest.fixture
def traces(tmp_path, monkeypatch):
    for name, gap in (("slow", 0.5), ("burst", 0.0)):
        rows = [f"{gap * i},{50 + 131 * i % 900},{2 + 7 * i % 40}" for i in range(40)]
        header = "arrival_s,prompt_tokens,output_tokens"
        (tmp_path / f"{name}.csv").write_text("\n".join([header, *rows]))
    monkeypatch.setenv("VMM_TRACES", f"{tmp_path}/slow.csv:{tmp_path}/burst.csv")
    return ("slow", "burst")


def test_replay(traces):
    told = []
    metrics = replay.run(told.append, "simulation").metrics
    assert told[0] == "slow at 1 times its rate, 80 GiB"
    assert all(math.isfinite(value) for value in metrics.values())
    # A burst is served as fast as it can be from the start; the other until it comes at once.
    assert "burst_80gib_x2_hide_ratio" in metrics
    assert "burst_80gib_x4_hide_ratio" not in metrics
    loads = [load for load in (1, 2, 4, 8, 16, 32, 64) if f"slow_80gib_x{load}_hide_ratio" in metrics]
    assert len(loads) > 2
    for load, more in pairwise(loads[:-1]):
        name = "slow_80gib_x{}_throughput_tokens_per_s"
        assert metrics[name.format(more)] >= replay.GROWTH * metrics[name.format(load)]
    assert metrics["slow_throughput_vs_zero_cost_driver"] == pytest.approx(1, abs=0.01)
    assert metrics["hide_ratio"] <= 1
    assert metrics["worst_hide_ratio"] <= metrics["hide_ratio"]
    assert metrics["peak_sequences_vs_static"] > 1
    # Most of a cold start is creating memory; some of it is mapping.
    cold, warm = (metrics[f"burst_first_prompts_stall_ms{suffix}"] for suffix in ("", "_warm"))
    assert 0 < warm < cold / 2
    assert 0 < metrics["burst_first_prompts_longest_stall_ms_warm"] <= warm


def test_prefix_sharing(tmp_path, monkeypatch):
    for name, chats in (("few", 6), ("many", 24)):
        (tmp_path / f"{name}.jsonl").write_text(conversations(chats))
    monkeypatch.setenv("VMM_TRACES", f"{tmp_path}/few.jsonl:{tmp_path}/many.jsonl")
    monkeypatch.setattr(replay_prefixes, "MEMORY_TOKENS", 30_000)
    told = []
    report = replay.run(told.append, "simulation", prefix_sharing=True)
    metrics = report.metrics
    assert told[:2] == ["few with memory for everything", "few with memory for 30,000 tokens"]
    assert all(math.isfinite(value) for value in metrics.values())
    for name in ("few_", "many_", ""):
        assert metrics[f"{name}prefix_hit_fraction_over_unlimited"] == pytest.approx(1)
        assert 0.3 < metrics[f"{name}prefix_hit_fraction_unlimited"] < 0.7
        assert metrics[f"{name}80gib_throughput_with_over_without"] > 0.99
    # 24 chats do not fit into 30,000 tokens, in neither cache.
    for kind in ("", "lru_"):
        assert 0 < metrics[f"many_3m_{kind}prefix_hit_fraction"] < 0.9 * metrics["many_prefix_hit_fraction"]
    assert metrics["many_3m_prefix_hit_fraction_over_lru"] > 0.7
    assert not any(key.endswith("vs_static") for key in metrics)
    assert "paged16-prefix" in report.peers


def test_prefix_sharing_without_hash_ids(traces):
    with pytest.raises(InvalidArgument, match="none has hash ids"):
        replay.run(lambda what: None, "simulation", prefix_sharing=True)


def test_a_trace_that_is_not_there(monkeypatch, tmp_path):
    monkeypatch.setenv("VMM_TRACES", str(tmp_path))
    with pytest.raises(InvalidArgument, match="VMM_TRACES"):
        replay.read_traces()


def test_pages(traces, monkeypatch, tmp_path):
    monkeypatch.setattr(pages, "PAGES_MIB", (2, 16))
    monkeypatch.setattr(pages, "LAYERS", (4, 0, 32))
    monkeypatch.setattr(pages, "TRACES", traces)
    metrics = pages.run(lambda what: None, "simulation").metrics
    for trace in traces:
        small, large = (metrics[f"{trace}_24gib_{mib}mib_g32_fragmentation"] for mib in (2, 16))
        assert small < large
        small, default, large = (
            metrics[f"{trace}_24gib_2mib_g{g}_fragmentation"] for g in (32, "default", 4)
        )
        assert small < default < large  # 5 extents, between 1 and 8
    table = pages.table(metrics).splitlines()
    assert len(table) == 2 + 6
    pytest.importorskip("matplotlib")
    pages.plot(metrics, tmp_path / "pages.svg")
    assert (tmp_path / "pages.svg").stat().st_size > 1000
