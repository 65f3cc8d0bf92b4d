"""``vmm bench policies`` over small traces of our own, and over the real ones where they are."""

import json
from pathlib import Path

import pytest
from conversations import conversations

from vmm.benchmarks import policies, policies_turns
from vmm.errors import InvalidArgument

REAL = Path(__file__).parents[2].parent / "shared" / "traces"
needs_real = pytest.mark.skipif(
    not REAL.is_dir(), reason="the public traces are not at ../shared/traces beside the checkout"
)


def nothing(stage):
    pass


def request(t, tokens, out, ids, stop="tool_use"):
    return {"t": t, "in": tokens, "out": out, "hash_ids": ids, "stop": stop}


def sessions(count=8, turns=12):
    """Every second session works for itself, and goes on after a second or two; the others wait for someone
    who takes minutes. One has a sub-agent."""
    lines = []
    for number in range(count):
        pause = 1.5 if number % 2 else 200.0
        stop = "tool_use" if number % 2 else "end_turn"
        requests = [
            request(pause * turn, 64 * (20 + turn), 10, list(range(20 + turn)), stop) for turn in range(turns)
        ]
        if number == 3:
            within = [
                request(0.0, 640, 5, list(range(500, 510))),
                request(1.0, 704, 5, list(range(500, 511))),
            ]
            requests.append({"t": 30.0, "duration_ms": 20_000, "requests": within})
        lines.append(json.dumps({"id": str(number), "block_size": 64, "requests": requests}))
    return "\n".join(lines)


@pytest.fixture
def traces(tmp_path, monkeypatch):
    (tmp_path / "chats.jsonl").write_text(conversations(chats=20, turns=6))
    (tmp_path / "agents.jsonl").write_text(sessions())
    (tmp_path / "plain.csv").write_text("arrival_s,prompt_tokens,output_tokens\n0,10,10\n1,10,10\n")
    names = ("chats.jsonl", "agents.jsonl", "plain.csv")
    monkeypatch.setenv("VMM_TRACES", ":".join(f"{tmp_path}/{name}" for name in names))
    monkeypatch.setattr(policies, "CAPACITIES", (20, 60, 2_000))
    return tmp_path


def test_every_policy_has_its_figures_and_none_beats_the_best(traces):
    told = []
    metrics = policies.run(told.append, "simulation").metrics
    assert told[0] == "chats, memory for 20 blocks"
    assert told[-1] == "agents_crowded, four tenths of the memory for all"
    names = [name.replace("-", "_") for name in policies.POLICIES]
    for blocks in (20, 60, 2_000):
        fractions = {name: metrics[f"chats_{blocks}_{name}"] for name in names}
        assert max(fractions.values()) == fractions["opt"]
        assert min(fractions.values()) >= 0
    # With room for all of them, every block but the first use of each is a hit, whoever evicts.
    assert len({metrics[f"chats_2000_{name}"] for name in names}) == 1
    assert metrics["chats_20_lru"] < metrics["chats_60_lru"] < metrics["chats_2000_lru"]
    reached = metrics["chats_60_predictive_of_lru_to_opt"]
    low, high = metrics["chats_60_lru"], metrics["chats_60_opt"]
    assert low + reached * (high - low) == pytest.approx(metrics["chats_60_predictive"], abs=1e-3)
    for share in policies_turns.SHARES:
        for kind in ("agents", "agents_crowded"):
            assert metrics[f"{kind}_{share}_opt_full_turns"] >= metrics[f"{kind}_{share}_lru_full_turns"]
            assert metrics[f"{kind}_{share}_opt_missing"] <= metrics[f"{kind}_{share}_lru_missing"]
            assert f"{kind}_{share}_predictive_labelled_full_turns" in metrics
    assert not any(key.startswith("plain") for key in metrics)
    assert policies.run(nothing, "simulation").metrics == metrics
    assert policies.table(metrics, "chats").count("\n") == 4
    assert policies.table_of_turns(metrics, "agents").count("\n") == 4


def test_hit_fractions_of_lru_are_those_counted_by_hand(traces):
    trace = next(trace for name, trace, _ in policies.read_traces() if name == "chats")
    kept, hits, uses = {}, 0, 0  # the block used longest ago in front
    for each in trace.requests:
        uses += len(each.hash_ids)
        hits += sum(block in kept for block in each.hash_ids)
        for block in reversed(each.hash_ids):
            kept.pop(block, None)
            kept[block] = True
            while len(kept) > 20:
                del kept[next(iter(kept))]
    assert 0 < hits < uses
    assert policies.of_blocks(nothing, "chats", trace)["chats_20_lru"] == hits / uses


def test_turns_are_of_sequences_and_want_what_their_prompts_begin_with(tmp_path):
    requests = [
        request(0.0, 130, 10, [1, 2, 3]),
        request(5.0, 200, 0, [1, 2, 9, 10], "end_turn"),  # parts from the first after two blocks
        {"t": 20.0, "duration_ms": 4_000, "requests": [request(1.0, 60, 0, [50]), request(2.0, 64, 1, [50])]},
    ]
    path = tmp_path / "one.jsonl"
    path.write_text(json.dumps({"requests": requests}) + "\n\n")
    turns = policies_turns.read_turns(path)
    fields = ("at_s", "sequence", "wanted_tokens", "tokens", "label", "new_blocks", "output_tokens")
    assert [tuple(getattr(turn, field) for field in fields) for turn in turns] == [
        (0.0, 0, 0, 140, policies_turns.WAITS_FOR_TOOL, 3, 10),
        (5.0, 0, 128, 200, policies_turns.WAITS_FOR_HUMAN, 2, 0),
        (17.0, 1, 0, 60, policies_turns.WAITS_FOR_TOOL, 1, 0),
        (18.0, 1, 60, 65, policies_turns.WAITS_FOR_TOOL, 0, 1),
    ]
    assert policies_turns.longest_tokens(turns) == 265
    assert [turn.at_s for turn in policies_turns.crowded(turns)] == [0.0, 0.0, 1.0, 5.0]


def test_nobody_is_idle_for_long_in_a_crowd(traces):
    turns = policies_turns.crowded(policies_turns.read_turns(traces / "agents.jsonl"))
    last = {}
    for turn in turns:
        assert turn.at_s - last.get(turn.sequence, 0.0) <= policies_turns.MOST_IDLE_S
        last[turn.sequence] = turn.at_s
    assert len(last) == 9


@pytest.mark.parametrize("folder", ["empty", "without"])
def test_traces_that_are_not_there_or_have_no_hash_ids(traces, monkeypatch, folder):
    given = {"empty": traces / "nothing", "without": traces / "plain.csv"}[folder]
    monkeypatch.setenv("VMM_TRACES", str(given))
    with pytest.raises(InvalidArgument, match="VMM_TRACES"):
        policies.run(nothing, "simulation")


@needs_real
def test_predictive_is_above_the_best_plain_policy_on_the_conversation_trace(monkeypatch):
    monkeypatch.setenv("VMM_TRACES", str(REAL))
    monkeypatch.setattr(policies, "CAPACITIES", (1_000, 5_859, 10_000, 30_000))
    trace = next(trace for name, trace, _ in policies.read_traces() if name == "conversation")
    metrics = policies.of_blocks(nothing, "conversation", trace)
    lru = {1_000: 0.0445, 5_859: 0.1361, 10_000: 0.2116, 30_000: 0.3257}  # counted by another program
    for blocks in policies.CAPACITIES:
        assert metrics[f"conversation_{blocks}_lru"] == pytest.approx(lru[blocks], abs=5e-5)
        assert metrics[f"conversation_{blocks}_predictive"] > metrics[f"conversation_{blocks}_mq"]


@needs_real
def test_predictive_finds_more_sessions_whole_than_lru(monkeypatch):
    turns = policies_turns.read_turns(REAL / policies.TRACES["agentic"])
    for name, each in (("agentic", turns), ("crowded", policies_turns.crowded(turns))):
        metrics = policies.of_turns(nothing, name, each)
        for share in policies_turns.SHARES:
            ours, lru = (metrics[f"{name}_{share}_{policy}_full_turns"] for policy in ("predictive", "lru"))
            assert ours >= lru - 0.005
        assert metrics[f"{name}_tenth_predictive_full_turns"] > metrics[f"{name}_tenth_lru_full_turns"] + 0.03
