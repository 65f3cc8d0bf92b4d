"""The sessions of ``vmm bench oversubscribe``, and the bytes they leave in the cache and look for later."""

from __future__ import annotations

import random
from dataclasses import dataclass, field

import torch

from vmm.benchmarks.policies_turns import MOST_IDLE_S, WAITS_FOR_TOOL, Turn
from vmm.kv_cache import Sequence

# A token's record has all layers, K and V, so that a sequence is one extent: 64 tokens fill a page.
LAYERS, HEADS, HEAD_DIM = 2, 2, 32
TOKEN_BYTES = LAYERS * 2 * HEADS * HEAD_DIM * 4
PAGE_BYTES = 64 << 10

_ONE = 0x3F800000  # 1.0 in float32: with any 23 bits of a fraction it is a number from 1 to 2
_FRACTION = 0x7FFFFF


@dataclass(frozen=True, slots=True)
class SmallTurn:
    """A turn with fewer tokens. Of those that the sequence had, the prompt begins with ``wanted``."""

    wanted: int
    prompt: int
    tokens: int  # of the sequence when the turn is over
    think_s: float  # before the turn
    category: str  # what the sequence waits for after it


@dataclass(eq=False, slots=True)
class Session:
    """Whoever has had all turns begins again, as somebody else, with none of what was."""

    turns: list[SmallTurn]
    at: int  # the turn that comes next
    identity: int
    length: int = 0  # what it has had written
    sequence: Sequence | None = None
    in_turn: bool = False
    could_run_s: float | None = None  # since when its turn would run if its tokens were there

    @property
    def turn(self) -> SmallTurn:
        return self.turns[self.at]


@dataclass
class Crowd:
    """``copies`` of each session of a trace, which are somewhere in the midst of their turns."""

    sessions: list[Session]
    mean_tokens: int  # of all together: each turn of a session counts alike
    most_tokens: int  # of all together, each at its longest
    chances: random.Random
    identities: int = field(default=0)

    def begin_again(self, session: Session) -> None:
        self.identities += 1
        session.identity = self.identities
        session.at = session.length = 0


def small_turns(turns: list[Turn], divisor: int, think_scale: float) -> list[list[SmallTurn]]:
    """The turns of each sequence, with every number of tokens divided; nobody thinks for more than
    ``MOST_IDLE_S`` before the times are scaled."""
    out: dict[int, list[SmallTurn]] = {}
    for turn in turns:
        mine = out.setdefault(turn.sequence, [])
        had = mine[-1].tokens if mine else 0
        wanted = min(turn.wanted_tokens // divisor, had)
        output = max(1, turn.output_tokens // divisor)
        prompt = max(1, wanted, turn.tokens // divisor - output)
        think_s = min(turn.think_s, MOST_IDLE_S) * think_scale
        category = "tool" if turn.label == WAITS_FOR_TOOL else "human"
        mine.append(SmallTurn(wanted, prompt, prompt + output, think_s, category))
    return list(out.values())


def crowd(turns: list[list[SmallTurn]], copies: int, seed: int) -> Crowd:
    chances = random.Random(seed)
    all_turns = [each for each in turns for _ in range(copies)]
    sessions = [Session(each, chances.randrange(len(each)), i) for i, each in enumerate(all_turns)]
    mean = sum(sum(turn.tokens for turn in each) / len(each) for each in all_turns)
    most = sum(max(turn.tokens for turn in each) for each in all_turns)
    return Crowd(sessions, int(mean), most, chances, identities=len(sessions))


def tags(identity: int, layer: int, first: int, last: int) -> torch.Tensor:
    """``[K and V, tokens, heads]``: the numbers, as int32, that tokens from ``first`` to ``last`` of this
    session have in the layer; 23 bits of each come from all that it depends on."""
    at = torch.arange(first, last).view(1, -1, 1)
    place = torch.arange(2 * HEADS).view(2, 1, HEADS) + 2 * HEADS * layer
    mixed = at * 0x9E3779B1 + place * 0x85EBCA77 + identity * 0xC2B2AE3D
    mixed = (mixed ^ (mixed >> 15)) * 0x2C1B3C6D
    mixed = mixed ^ (mixed >> 13)
    return (_ONE | (mixed & _FRACTION)).to(torch.int32)


def write(session: Session, first: int, last: int) -> None:
    """Writes K and V of these tokens."""
    assert session.sequence is not None
    for layer in range(LAYERS):
        values = tags(session.identity, layer, first, last)
        for kv, value in zip(session.sequence.kv(layer), values, strict=True):
            kv[first:last] = value.view(torch.float32).unsqueeze(-1)
    session.length = last


def verify(session: Session) -> tuple[int, int]:
    """Compares every byte that the session has. Returns over how many pages these are, and of how many
    something is not what was written."""
    assert session.sequence is not None
    wrong: set[int] = set()
    for layer in range(LAYERS):
        values = tags(session.identity, layer, 0, session.length)
        for kv, value in zip(session.sequence.kv(layer), values, strict=True):
            found, expected = kv.view(torch.int32)[: session.length], value.unsqueeze(-1)
            if torch.equal(found, expected.expand_as(found)):
                continue
            tokens = (found != expected).flatten(1).any(1).nonzero().flatten()
            wrong.update((tokens * TOKEN_BYTES // PAGE_BYTES).tolist())
    return -(-session.length * TOKEN_BYTES // PAGE_BYTES), len(wrong)


def attend(sessions: list[Session]) -> None:
    """What an iteration computes: attention over all K and V of these sessions, in every layer."""
    query = torch.full((HEAD_DIM,), 1 / HEAD_DIM)
    for session in sessions:
        assert session.sequence is not None
        for layer in range(LAYERS):
            keys, values = session.sequence.kv(layer)
            for head in range(HEADS):  # in one call for all heads torch would copy the keys
                weights = torch.softmax(keys[:, head] @ query, dim=0)
                _ = values[:, head].T @ weights
