"""The server of ``vmm bench oversubscribe``: a scheduler over a KVCache whose sessions go and come back.

An iteration steps all running sequences and computes attention over them. A turn begins with a step that
names what the sequence has, after which every byte of that is compared; then the prompt's new tokens are
written, and then a token in each iteration.
"""

from __future__ import annotations

import heapq
import time
from collections import deque
from contextlib import suppress
from dataclasses import dataclass, field

from vmm.benchmarks.oversubscribe_sessions import Crowd, Session, attend, verify, write
from vmm.errors import InvalidArgument, OutOfPages, SequenceLost
from vmm.kv_cache import KVCache

NO_PROGRESS_S = 60.0
_LOOK_AGAIN_S = 0.0005


@dataclass(frozen=True)
class Rules:
    """How a server behaves. Nobody begins a turn while ``places`` run, or while what runs would then have
    more than ``room_tokens`` when its turns are over."""

    places: int
    room_tokens: int
    parks: bool = True
    ahead: bool = True  # whoever arrives is prefetched, and admitted when ready; else stepped at once


@dataclass
class Counts:
    """What has happened since the sessions were there."""

    turns: int = 0
    output_tokens: int = 0
    verified_pages: int = 0
    wrong_pages: int = 0
    preempted: int = 0
    iterations: int = 0
    running: int = 0  # summed over the iterations
    live_tokens: int = 0  # the same
    seconds: float = 0.0
    delays_s: list[float] = field(default_factory=list)


class Server:
    def __init__(self, cache: KVCache, crowd: Crowd, rules: Rules) -> None:
        self.cache, self.crowd, self.rules = cache, crowd, rules
        self.counts = Counts()
        self._coming: list[tuple[float, int, Session]] = []  # by when their thinking is over
        self._queue: deque[Session] = deque()  # have arrived
        self._begun: list[Session] = []  # run, and have not been looked at since they came back
        self._running: list[Session] = []
        self._live_tokens = 0

    def settle(self) -> None:
        """All sessions have what they had before the turn that is next, and are idle."""
        for session in self.crowd.sessions:
            if session.at == 0:
                continue
            length = session.turns[session.at - 1].tokens
            session.sequence = self.cache.open(length)
            self._settle_in(session, length)
            write(session, 0, length)
            self._live_tokens += length
            self._park(session, session.turns[session.at - 1].category)
            self.cache.end()  # or the next could not have its memory

    def _settle_in(self, session: Session, length: int) -> None:
        until_s = time.perf_counter() + NO_PROGRESS_S
        while True:
            try:
                self.cache.step({session.sequence: length})
            except OutOfPages:  # others may be on their way to a tier
                if time.perf_counter() > until_s:
                    raise
                time.sleep(_LOOK_AGAIN_S)
            else:
                return

    def run(self, turns: int) -> None:
        """Serves until so many turns are over."""
        for session in self.crowd.sessions:
            self._comes(session, self.crowd.chances.random() * session.turn.think_s)
        self._start = self._progress_s = time.perf_counter()
        while self.counts.turns < turns:
            self._arrive()
            self._admit()
            if self._running or self._begun:
                self._iterate()
            else:
                self._idle()
        self.counts.seconds = self._now()

    def _now(self) -> float:
        return time.perf_counter() - self._start

    def _comes(self, session: Session, at_s: float) -> None:
        heapq.heappush(self._coming, (at_s, session.identity, session))

    # Who runs.

    def _arrive(self) -> None:
        while self._coming and self._coming[0][0] <= self._now():
            session = heapq.heappop(self._coming)[2]
            session.could_run_s = None
            if self.rules.ahead and session.sequence is not None:
                self.cache.prefetch(session.sequence)
            self._queue.append(session)

    def _admit(self) -> None:
        """In the order in which they arrived; who is not ready is passed by, and takes no place."""
        run = [*self._running, *self._begun]
        places = self.rules.places - len(run)
        room = self.rules.room_tokens - sum(session.turn.tokens for session in run)
        waiting: deque[Session] = deque()
        for session in self._queue:
            # One that has no room by itself runs alone.
            if places <= 0 or (session.turn.tokens > room and places < self.rules.places):
                waiting.append(session)
                places = 0  # nobody who came later has what it lacks
                continue
            if session.could_run_s is None:
                session.could_run_s = self._now()
            if self.rules.ahead and not self._is_ready(session):
                waiting.append(session)
                continue
            self._begin(session)
            places -= 1
            room -= session.turn.tokens
        if waiting and not self._running and not self._begun:
            self._begin(waiting.popleft())  # there is nothing better to do than to wait for it in step
        self._queue = waiting

    def _is_ready(self, session: Session) -> bool:
        if session.sequence is None or session.sequence.ready:
            return True
        self.cache.prefetch(session.sequence)  # it may have been there, and gone again
        return False

    def _begin(self, session: Session) -> None:
        if session.sequence is None:
            session.sequence = self.cache.open(session.turn.prompt)
        self._begun.append(session)

    def _idle(self) -> None:
        """Nobody has arrived."""
        self.cache.end()  # what ran last may be copied now
        time.sleep(_LOOK_AGAIN_S)

    def _require_progress(self) -> None:
        if time.perf_counter() - self._progress_s > NO_PROGRESS_S:
            raise AssertionError(f"nothing has run for {NO_PROGRESS_S:.0f} s: {self.cache.pool.stats()}")

    # An iteration.

    def _iterate(self) -> None:
        wanted = {session: session.length for session in self._begun}
        wanted |= {session: max(session.length + 1, session.turn.prompt) for session in self._running}
        stepped = self._step(wanted)
        stepped_s = self._now()
        if not stepped:
            self._require_progress()
            return
        self._progress_s = time.perf_counter()
        for session in stepped:
            if session in self._begun:
                self._come_back(session, stepped_s)
            else:
                self._grow(session, wanted[session])
        attend(stepped)
        self.counts.iterations += 1
        self.counts.running += len(stepped)
        self.counts.live_tokens += self._live_tokens
        begun, self._begun = self._begun, []
        for session in [each for each in self._running if each.length >= each.turn.tokens]:
            self._running.remove(session)
            self._end_turn(session)
        self._running += begun

    def _step(self, wanted: dict[Session, int]) -> list[Session]:
        """Those that have what they want now. Who does not get it is preempted."""
        of = {session.sequence: session for session in wanted}
        while of:
            try:
                self.cache.step({sequence: wanted[session] for sequence, session in of.items()})
            except OutOfPages as error:
                unfit = [each for each in of if each not in error.fitting] or list(of)[-1:]
                for sequence in unfit:
                    self._preempt(of.pop(sequence))
            except SequenceLost as error:
                for sequence, first in zip(error.sequences, error.first_lost_token, strict=True):
                    self._forget(of[sequence], first)
                    wanted[of[sequence]] = first
            else:
                return list(of.values())
        return []

    def _preempt(self, session: Session) -> None:
        """It gives its memory to others, and goes on when there is some."""
        self.counts.preempted += 1
        (self._begun if session in self._begun else self._running).remove(session)
        with suppress(InvalidArgument):  # it is parked still
            self._park(session, "preempted")
        self.cache.prefetch(session.sequence)
        session.could_run_s = None
        self._queue.appendleft(session)

    def _park(self, session: Session, category: str) -> None:
        if self.rules.parks:
            session.sequence.park(category=category)

    def _forget(self, session: Session, length: int) -> None:
        """It has only so much left: the rest is computed again."""
        self._live_tokens -= session.length - length
        session.length = length

    def _come_back(self, session: Session, now_s: float) -> None:
        if session.length:
            self.counts.delays_s.append(now_s - session.could_run_s)
            verified, wrong = verify(session)
            self.counts.verified_pages += verified
            self.counts.wrong_pages += wrong
        if not session.in_turn and session.turn.wanted < session.length:
            session.sequence.truncate(session.turn.wanted)
            self._forget(session, session.turn.wanted)
        session.in_turn = True

    def _grow(self, session: Session, length: int) -> None:
        self._live_tokens += length - session.length
        self.counts.output_tokens += length > session.turn.prompt
        write(session, session.length, length)

    def _end_turn(self, session: Session) -> None:
        self.counts.turns += 1
        category = session.turn.category
        session.in_turn = False
        session.at += 1
        if session.at < len(session.turns):
            self._park(session, category)
        else:
            session.sequence.close()
            session.sequence = None
            self._live_tokens -= session.length
            self.crowd.begin_again(session)
        self._comes(session, self._now() + session.turn.think_s)
