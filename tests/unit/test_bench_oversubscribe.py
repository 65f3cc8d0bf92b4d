"""``vmm bench oversubscribe`` over a few small sessions of our own, on the host driver. No test asserts a
time."""

import json
import math

import pytest
import torch

from vmm import KVCache, Pool
from vmm.benchmarks import oversubscribe, oversubscribe_server, oversubscribe_sessions
from vmm.benchmarks.policies_turns import WAITS_FOR_HUMAN, WAITS_FOR_TOOL, Turn
from vmm.errors import InvalidArgument, OutOfPages, SequenceLost

TURNS = 24


def lines(count=10, turns=6):
    """Sessions of some hundred tokens (a page has 64) when the benchmark has divided them by 32; each prompt
    begins with half of what its session had, or less."""
    out = []
    for number in range(count):
        requests = []
        for turn in range(turns):
            blocks = 60 + 20 * turn + 7 * number
            kept, changed = blocks // 2, 9000 * (1 + turn // 3)
            requests.append(
                {
                    "t": 2.0 * turn,
                    "in": 64 * blocks,
                    "out": 64,
                    "hash_ids": [*range(kept), *range(changed, changed + blocks - kept)],
                    "stop": "tool_use" if number % 2 else "end_turn",
                    "think_time": 0.05 * (1 + number % 3),
                }
            )
        out.append(json.dumps({"id": str(number), "block_size": 64, "requests": requests}))
    return "\n".join(out)


@pytest.fixture(autouse=True)
def small(tmp_path, monkeypatch):
    (tmp_path / "agents.jsonl").write_text(lines())
    (tmp_path / "plain.csv").write_text("arrival_s,prompt_tokens,output_tokens\n0,10,10\n1,10,10\n")
    monkeypatch.setenv("VMM_TRACES", f"{tmp_path}/agents.jsonl")
    monkeypatch.setenv("VMM_SWAP_FOLDER", str(tmp_path))
    monkeypatch.setattr(oversubscribe, "ROUNDS", 1)
    return tmp_path


def cache_for(tokens, sessions=2, **pool):
    room = tokens * oversubscribe_sessions.TOKEN_BYTES
    return oversubscribe.cache_in(Pool(room, **pool), sessions, max_tokens=1000)


def session_in(cache, length, identity=5):
    turns = [oversubscribe_sessions.SmallTurn(0, length, length + 1, 0.0, "tool")]
    session = oversubscribe_sessions.Session(turns, 0, identity)
    session.sequence = cache.open(length)
    cache.step({session.sequence: length})
    oversubscribe_sessions.write(session, 0, length)
    return session


def test_every_page_comes_back_in_every_arm(small):
    told = []
    report = oversubscribe.run(told.append, "cpu", turns=TURNS)
    assert told == [f"{name.replace('_', ' ')}, round 1 of 1, {TURNS} turns" for name in oversubscribe.ARMS]
    metrics = report.metrics
    assert all(math.isfinite(value) for value in metrics.values())
    assert metrics["wrong_pages"] == metrics["lost_pages"] == 0
    assert metrics["verified_pages"] > 5 * TURNS
    assert metrics["moved_pages"] > TURNS
    for prefix in ("", "lru_", "alone_", "small_host_"):
        assert metrics[f"{prefix}live_over_budget"] == pytest.approx(10, rel=0.5)
        assert metrics[f"{prefix}missing_fraction"] > 0
        assert metrics[f"{prefix}throughput_over_all_resident"] > 0
        assert metrics[f"{prefix}resume_delay_ms_p50"] <= metrics[f"{prefix}resume_delay_ms_p99"]
    for hidden in ("loads_hidden_fraction", "lru_loads_hidden_fraction", "hidden_by_prediction_alone"):
        assert 0 <= metrics[hidden] <= 1
    # Who is stepped although it is away is waited for.
    assert metrics["hidden_by_prediction_alone"] < metrics["loads_hidden_fraction"]
    assert report.peers["all_resident_output_tokens_per_s"] > 0
    assert {path.name for path in small.iterdir()} == {"agents.jsonl", "plain.csv"}


def test_a_byte_that_changed_is_found():
    cache = cache_for(2000)
    one, other = session_in(cache, 300), session_in(cache, 300, identity=6)
    assert oversubscribe_sessions.verify(one) == (5, 0)
    assert oversubscribe_sessions.verify(other) == (5, 0)
    _, v = other.sequence.kv(1)
    v.view(torch.uint8)[130, 1, 9] ^= 1
    assert oversubscribe_sessions.verify(other) == (5, 1)
    _, v = other.sequence.kv(0)
    v[299] = 0
    assert oversubscribe_sessions.verify(other) == (5, 2)
    # What another session, layer, head or place has is none of its own.
    k, v = one.sequence.kv(0)
    for kv, changed in ((k, k[1:2].clone()), (k, v[:1].clone()), (k, one.sequence.kv(1)[0][:1].clone())):
        kept = kv[:1].clone()
        kv[:1] = changed
        assert oversubscribe_sessions.verify(one) == (5, 1)
        kv[:1] = kept
    kept = k[:1].clone()
    k[:1] = kept.flip(1)
    assert oversubscribe_sessions.verify(one) == (5, 1)
    one.identity = 7
    assert oversubscribe_sessions.verify(one) == (5, 5)


def test_turns_in_small():
    turns = [
        Turn(0.0, 0, 0, 3200, WAITS_FOR_TOOL, 1, 320),
        Turn(1.0, 1, 0, 10, WAITS_FOR_HUMAN, 1, 1, 9.0),
        Turn(5.0, 0, 1600, 6400, WAITS_FOR_HUMAN, 1, 64, 1e6),
    ]
    small_turn = oversubscribe_sessions.SmallTurn
    assert oversubscribe_sessions.small_turns(turns, 32, 0.5) == [
        [small_turn(0, 90, 100, 0.0, "tool"), small_turn(50, 198, 200, 150.0, "human")],
        [small_turn(0, 1, 2, 4.5, "human")],
    ]


def test_sessions_are_in_the_midst_of_their_turns_by_the_seed():
    turns = oversubscribe.read_small_turns()
    at = [[each.at for each in oversubscribe.crowd(turns, 3, seed).sessions] for seed in (1, 1, 2)]
    assert at[0] == at[1] != at[2]
    crowd = oversubscribe.crowd(turns, 3, 1)
    assert len(crowd.sessions) == 30
    assert len({session.identity for session in crowd.sessions}) == 30
    crowd.begin_again(crowd.sessions[4])
    assert crowd.sessions[4].at == 0
    assert len({session.identity for session in crowd.sessions}) == 30


@pytest.mark.parametrize("error", ["out of pages", "lost"])
def test_sessions_that_are_refused_or_lost_go_on(monkeypatch, error):
    """The first steps of two sessions fail; all of the others' bytes are right, and theirs are computed
    again."""
    step, failed = KVCache.step, []

    def failing(self, sequences):
        one = next(iter(sequences))
        if one.length > 100 and len(failed) < 2 and one.length == sequences[one]:
            failed.append(one)
            if error == "out of pages":
                raise OutOfPages("refused")
            one.truncate(64)
            raise SequenceLost("lost", (one,), (64,))
        step(self, sequences)

    settle = oversubscribe_server.Server.settle

    def settled(self):
        settle(self)
        monkeypatch.setattr(KVCache, "step", failing)

    monkeypatch.setattr(oversubscribe_server.Server, "settle", settled)
    sums = oversubscribe.Sums()
    sessions = oversubscribe.crowd(oversubscribe.read_small_turns(), 8, 1)
    oversubscribe.serve(sums, oversubscribe.ARMS["predictive"], sessions, TURNS)
    assert len(failed) == 2
    assert sums.counts.turns >= TURNS
    assert sums.counts.wrong_pages == 0
    assert sums.counts.preempted >= (2 if error == "out of pages" else 0)


def test_a_server_that_gets_nowhere_ends(monkeypatch):
    monkeypatch.setattr(oversubscribe_server, "NO_PROGRESS_S", 0.05)

    def refuse(self, sequences):
        raise OutOfPages("refused")

    sessions = oversubscribe.crowd(oversubscribe.read_small_turns(), 1, 1)
    cache = oversubscribe.cache_in(Pool("64MiB", host="64MiB"), len(sessions.sessions), max_tokens=1000)
    rules = oversubscribe_server.Rules(places=2, room_tokens=1000)
    server = oversubscribe_server.Server(cache, sessions, rules)
    server.settle()
    monkeypatch.setattr(KVCache, "step", refuse)
    with pytest.raises(AssertionError, match="nothing has run"):
        server.run(1)


def test_the_percentiles():
    sums = oversubscribe.Sums()
    assert oversubscribe.delays("", sums) == {}
    sums.counts.delays_s = [(200 - i) / 1e3 for i in range(200)]
    assert oversubscribe.delays("x_", sums) == {"x_resume_delay_ms_p50": 100, "x_resume_delay_ms_p99": 198}


@pytest.mark.parametrize("file", ["nothing.jsonl", "plain.csv"])
def test_traces_that_are_not_there_or_have_no_sessions(small, monkeypatch, file):
    monkeypatch.setenv("VMM_TRACES", str(small / file))
    with pytest.raises(InvalidArgument, match="VMM_TRACES"):
        oversubscribe.run(lambda stage: None, "cpu")
