"""Replays of prompts that begin with what others have computed."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from conversations import BLOCK, conversations
from trace_texts import asked, sessions

from vmm.benchmarks import replay as bench
from vmm.benchmarks.replay_prefixes import unlimited
from vmm.errors import InvalidArgument
from vmm.simulate import SHARING_PREFIXES, Request, Settings, Trace, find_gpu, find_model, replay
from vmm.simulate.traces import read_trace

REAL = Path(__file__).parents[2].parent / "shared" / "traces" / "mooncake_conversation_trace.jsonl.gz"
MODEL, GPU = find_model("llama-3.1-8b"), find_gpu("a100-80gb")


def settings(gib=80, **changed):
    base = {"max_tokens": 16384, "max_sequences": 64, "batch_tokens": 2048, "call_times": GPU.call_times}
    return Settings(MODEL, GPU, gib * 2**30, **(base | changed))


@pytest.fixture
def trace(file_of):
    return read_trace(file_of(conversations()))


def ids(trace):
    return [each.hash_ids for each in trace.requests]


def test_hash_ids_are_kept_and_numbered_as_they_come(file_of):
    rows = [(0, [70, 9]), (1, [70, 8, 9]), (2, None), (3, [])]
    lines = [
        json.dumps(
            {"timestamp": at, "input_length": 2000, "output_length": 1}
            | ({"hash_ids": h} if h is not None else {})
        )
        for at, h in rows
    ]
    trace = read_trace(file_of("\n".join(lines)))
    assert ids(trace) == [(0, 1), (0, 2, 1), (), ()]
    assert [each.block_tokens for each in trace.requests] == [BLOCK, BLOCK, 0, 0]


def test_sessions_have_hash_ids_of_their_own(file_of):
    both = sessions([asked(0.0), asked(1.0)], [asked(2.0)])
    trace = read_trace(file_of(both), session_gap_s=0)
    assert ids(trace) == [(0,), (0,), (1,)]
    assert {each.block_tokens for each in trace.requests} == {64}
    larger = both.replace('{"id": "1",', '{"id": "1", "block_size": 128,')
    trace = read_trace(file_of(larger), session_gap_s=0)
    assert [each.block_tokens for each in trace.requests] == [64, 64, 128]


@pytest.mark.parametrize("wrong", ["7", [1, "2"], [1.5], [True], {"1": 2}])
def test_hash_ids_that_are_none(file_of, wrong):
    row = {"timestamp": 0, "input_length": 1, "output_length": 1, "hash_ids": wrong}
    with pytest.raises(InvalidArgument, match=r"hash_ids is .*expected a list of whole numbers"):
        read_trace(file_of(json.dumps(row)))


def test_the_most_that_can_be_found_counted_by_hand():
    def request(tokens, *hash_ids):
        return Request(0.0, tokens, 1, hash_ids, 64)

    trace = Trace("mine", "mooncake", [request(128, 0, 1), request(300, 0, 1, 2), request(64, 0)], "")
    # The last token of a prompt is always computed, so the third finds three of its four blocks of 16.
    assert unlimited(trace, 1000) == (128 + 48, 128 + 300 + 64)
    behind_another = request(256, 3, 1, 2)  # the same blocks behind another one are not the same
    assert unlimited(replace(trace, requests=[*trace.requests, behind_another]), 1000)[0] == 128 + 48
    assert unlimited(trace, 300) == (48, 128 + 64)  # the second is not served


@pytest.mark.parametrize("allocator", SHARING_PREFIXES)
def test_with_enough_memory_all_is_found(trace, allocator):
    found, looked_up = unlimited(trace, 16384)
    assert found > looked_up / 3
    metrics = replay(trace, settings(), allocator).metrics
    assert (metrics["found_tokens"], metrics["looked_up_tokens"]) == (found, looked_up)
    assert metrics["completed"] == len(trace.requests)
    needed = trace.prompt_tokens + trace.output_tokens - len(trace.requests)
    assert metrics["computed_over_needed"] == pytest.approx(1 - found / needed)


def test_what_is_found_is_not_computed_and_takes_no_time(trace):
    at_once = trace.at_load(1000)
    ours, without = (replay(at_once, settings(), name).metrics for name in ("vmm-prefix", "vmm"))
    assert "prefix_hit_fraction" not in without
    assert ours["throughput_tokens_per_s"] > 1.2 * without["throughput_tokens_per_s"]


def test_in_little_memory_less_is_found_and_the_more_recently_used(trace):
    little = settings(19)
    assert little.kv_bytes // MODEL.kv_bytes_per_token < trace.prompt_tokens / 8
    found, _ = unlimited(trace, 16384)
    for allocator in SHARING_PREFIXES:
        metrics = replay(trace, little, allocator).metrics
        assert 0 < metrics["found_tokens"] < 0.9 * found, allocator
        assert metrics["completed"] == len(trace.requests)


def test_requests_without_hash_ids_go_as_before(trace):
    plain = replace(trace, requests=[replace(each, hash_ids=(), block_tokens=0) for each in trace.requests])
    given = settings()
    assert replay(trace, given, "vmm") == replay(plain, given, "vmm")
    mixed = replace(trace, requests=[*trace.requests[:-1], plain.requests[-1]])
    metrics = replay(mixed, given, "vmm-prefix").metrics
    assert metrics["looked_up_tokens"] == trace.prompt_tokens - trace.requests[-1].prompt_tokens
    assert "prefix_hit_fraction" not in replay(plain, given, "vmm-prefix").metrics


def test_the_same_twice(trace):
    first, second = (replay(trace, settings(19), "vmm-prefix") for _ in range(2))
    assert first == second


def test_more_tokens_than_there_are_numbers(trace):
    last = replace(trace.requests[-1], hash_ids=(2**31 // BLOCK,))
    with pytest.raises(InvalidArgument, match="different blocks"):
        replay(replace(trace, requests=[*trace.requests, last]), settings(), "vmm-prefix")


def test_the_beginning_of_the_real_trace():
    if not REAL.exists():
        pytest.skip(f"the real traces are not part of the project: no {REAL}")
    trace = read_trace(REAL)
    part = replace(trace, requests=trace.requests[:200])
    given = bench.settings_for(4_000_000 * MODEL.kv_bytes_per_token)
    found, looked_up = unlimited(part, given.max_tokens)
    metrics = replay(part, given, "vmm-prefix").metrics
    assert metrics["looked_up_tokens"] == looked_up
    assert metrics["found_tokens"] >= 0.99 * found > 0
