"""Agentic sessions as turns of sequences that are parked in between, for ``vmm bench policies``."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import count, takewhile
from pathlib import Path
from typing import Any

from vmm.simulate.trace_formats import lines_of
from vmm.simulate.traces import SESSION_GAP_S

SHARES = {"tenth": 1, "two_tenths": 2, "four_tenths": 4}
MOST_IDLE_S = 300.0
BLOCK_TOKENS = 64
WAITS_FOR_TOOL, WAITS_FOR_HUMAN = 1, 2


@dataclass(frozen=True, slots=True)
class Turn:
    """``wanted_tokens`` are those of the sequence that this turn's prompt begins with. Before the turn a tool
    ran, or a human thought, for ``think_s``."""

    at_s: float
    sequence: int
    wanted_tokens: int
    tokens: int  # of the sequence when the turn is over
    label: int
    new_blocks: int
    output_tokens: int
    think_s: float = 0.0


def read_turns(path: Path, seed: int = 0) -> list[Turn]:
    """The turns of a file that ``vmm.simulate.read_trace`` has read, in the order of their times: sessions
    start as it has them start. A sub-agent is a sequence of its own."""
    chances = random.Random(seed)
    sequences = count()
    start_s = 0.0
    turns: list[Turn] = []
    for line in lines_of(path):
        if line.strip():
            session = json.loads(line)
            turns += _turns_within(session, start_s, sequences, session.get("block_size") or BLOCK_TOKENS)
            start_s += SESSION_GAP_S * chances.expovariate(1)
    return sorted(turns, key=lambda turn: turn.at_s)


def _turns_within(
    holder: dict[str, Any], start_s: float, sequences: Iterator[int], block_tokens: int
) -> Iterator[Turn]:
    sequence = next(sequences)
    before: list[int] = []
    seen: set[int] = set()
    tokens = 0
    for request in holder["requests"]:
        if "requests" in request:
            since_s = start_s + max(request["t"] - (request.get("duration_ms") or 0) / 1000, 0)
            yield from _turns_within(request, since_s, sequences, block_tokens)
            continue
        ids = request.get("hash_ids") or []
        alike = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(ids, before, strict=False)))
        wanted = min(alike * block_tokens, tokens)
        tokens = max(request["in"] + request["out"], 1)
        label = WAITS_FOR_TOOL if request.get("stop") == "tool_use" else WAITS_FOR_HUMAN
        new = len(set(ids) - seen)
        think_s = request.get("think_time") or 0.0
        yield Turn(start_s + request["t"], sequence, wanted, tokens, label, new, request["out"], think_s)
        before, seen = ids, seen.union(ids)


def crowded(turns: list[Turn]) -> list[Turn]:
    """The same turns, of sequences that all start at once and are idle for ``MOST_IDLE_S`` at most."""
    last: dict[int, tuple[float, float]] = {}  # of each sequence: when its last turn was, and is now
    out = []
    for turn in turns:
        was_s, is_s = last.get(turn.sequence, (turn.at_s, 0.0))
        is_s += min(turn.at_s - was_s, MOST_IDLE_S)
        last[turn.sequence] = (turn.at_s, is_s)
        out.append(replace(turn, at_s=is_s))
    return sorted(out, key=lambda turn: turn.at_s)


def longest_tokens(turns: list[Turn]) -> int:
    """Of all sequences together, each at its longest."""
    longest: dict[int, int] = {}
    for turn in turns:
        longest[turn.sequence] = max(longest.get(turn.sequence, 0), turn.tokens)
    return sum(longest.values())
