"""Traces of requests: when each arrived, how long its prompt was, and how many tokens answered it.

Four formats, told apart by content and not by name, each plain or gzip:

``azure``     CSV with TIMESTAMP (ISO 8601; without a zone it is UTC), ContextTokens and GeneratedTokens.
``csv``       one's own, with arrival_s, prompt_tokens and output_tokens.
``mooncake``  JSON lines with timestamp (ms), input_length and output_length (tokens); maybe hash_ids.
``agentic``   JSON lines, one session each, with requests that have t (s from its start), in and out (tokens);
              maybe hash_ids.

Hash ids say what prompts begin with: each stands for a block of 512 tokens (mooncake) or 64 (agentic, or the
session's block_size) and all before them. The last one of a prompt may stand for less than a block.

A sub-agent is an entry among a session's requests that has requests of its own. Its t is its end, and it
started duration_ms before: the published ones then all start within 1 s after an answer to their parent, and
those of one answer together. (Without duration_ms, t is taken for its start.) The t of its own requests
counts from its start.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, replace
from pathlib import Path

from vmm.errors import InvalidArgument
from vmm.simulate.trace_formats import MOST_TIME, Row, format_of, lines_of, rows_of

SESSION_GAP_S = 60.0  # the 43 published agentic sessions then start within the hour that other traces last


@dataclass(frozen=True, slots=True)
class Request:
    """``arrival_s`` is in seconds from the trace's first arrival. ``hash_ids``, of ``block_tokens`` tokens
    each, are numbered from 0 as they come in the file; there are none where it has none."""

    arrival_s: float
    prompt_tokens: int
    output_tokens: int
    hash_ids: tuple[int, ...] = ()
    block_tokens: int = 0


@dataclass(frozen=True)
class Trace:
    """At least one request, in the order they arrive; those of one moment are in the file's order.

    ``note`` says what was chosen or changed, and is empty where nothing was.
    """

    name: str
    format: str
    requests: list[Request]
    note: str

    def at_load(self, factor: float) -> Trace:
        """The same requests, arriving ``factor`` times as fast. Raises InvalidArgument unless it is above
        0."""
        if not 0 < factor < MOST_TIME:
            raise InvalidArgument(f"factor is {factor!r}; expected a number above 0")
        if factor == 1:
            return self
        faster = [replace(each, arrival_s=each.arrival_s / factor) for each in self.requests]
        note = _joined(self.note, f"arrivals {factor:g} times as fast")
        return replace(self, requests=faster, note=note)

    @property
    def duration_s(self) -> float:
        """Seconds from the first arrival to the last."""
        return self.requests[-1].arrival_s

    @property
    def prompt_tokens(self) -> int:
        """The tokens of all prompts."""
        return sum(each.prompt_tokens for each in self.requests)

    @property
    def output_tokens(self) -> int:
        """The tokens of all answers."""
        return sum(each.output_tokens for each in self.requests)


def read_trace(path: Path, *, seed: int = 0, session_gap_s: float = SESSION_GAP_S) -> Trace:
    """The trace in the file at ``path``.

    ``seed`` and ``session_gap_s`` are for agentic sessions, whose file does not say when they started: the
    first at 0, and each other one an exponential gap of mean ``session_gap_s`` seconds after the one before
    it in the file. Nobody waits for answers: every request arrives at its time, however slow the replay. A
    prompt or an output of 0 tokens becomes one of 1: a prefill is of something, and gives a token.

    Raises InvalidArgument, naming the file and the line, for what is no such trace or has no requests, and
    OSError where the file cannot be opened.
    """
    if not isinstance(seed, int) or not 0 <= session_gap_s < MOST_TIME:
        raise InvalidArgument(
            f"seed is {seed!r} and session_gap_s {session_gap_s!r}; expected an integer, and seconds from 0"
        )
    lines = lines_of(path)
    format = format_of(path, lines[0])
    found = list(rows_of(path, lines, format, random.Random(seed), session_gap_s))
    chosen = ""
    if format == "agentic":
        chosen = (
            f"sessions start in the file's order, with exponential gaps of mean {session_gap_s:g} s, seed"
            f" {seed}; sub-agents start duration_ms before their t; nobody waits for answers"
        )
    if not found:
        raise InvalidArgument(f"{path}, line 1 and all after it: no requests; expected at least one")
    note = _joined(chosen, _zeros("prompt_tokens", found), _zeros("output_tokens", found))
    return Trace(_name_of(path), format, _from_first_arrival(found), note)


def _zeros(what: str, found: list[Row]) -> str:
    count = sum(getattr(each, what) == 0 for each in found)
    return f"{what} 0 made 1 in {count} requests" if count else ""


def _joined(*notes: str) -> str:
    return "; ".join(filter(None, notes))


def _from_first_arrival(found: list[Row]) -> list[Request]:
    found.sort(key=lambda each: each.arrival_s)  # stable: within a tick, the file's order
    first_s = found[0].arrival_s
    return [
        Request(
            each.arrival_s - first_s,
            max(each.prompt_tokens, 1),
            max(each.output_tokens, 1),
            each.hash_ids,
            each.block_tokens,
        )
        for each in found
    ]


def _name_of(path: Path) -> str:
    return path.name.removesuffix(".gz").rsplit(".", 1)[0]
