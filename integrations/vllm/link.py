"""How the scheduler talks to its workers: what it asks goes to each of them, and a block is ready when all
say so."""

from __future__ import annotations

from array import array
from collections import deque
from collections.abc import Callable
from threading import Condition
from typing import Any, Protocol

from vmm.integrations.vllm.mapper import Answer, Mapper, Request


class Port(Protocol):
    """The scheduler's end of the way to one worker. Requests arrive in the order in which they were sent."""

    hello: dict[str, Any]  #: what the worker says of its memory

    def send(self, request: Request) -> None: ...
    def close(self) -> None: ...


class Link:
    """The scheduler's side. `take` is cheap where nothing has arrived."""

    def __init__(self) -> None:
        self._ports: list[Port] = []
        self._arrived: deque[Answer] = deque()
        self._news = Condition()
        self._voices: dict[int, list[int]] = {}  # by block: ranks that said "ready", ranks that refused
        self.figures: list[dict[str, int]] = []
        #: Called with the bytes that others ask a worker for, in the thread in which that arrives.
        self.on_pressure: Callable[[int], None] = lambda size: None

    def attach(self, port: Port) -> int:
        """Returns the rank to `hear` it by."""
        self._ports.append(port)
        self.figures.append({})
        return len(self._ports) - 1

    def announce(self, ids: array[int], row: int) -> None:
        """``ids`` are whole rows, and each row is answered as one."""
        self._send(Request("announce", ids, row))

    def drop(self, ids: array[int]) -> None:
        self._send(Request("drop", ids))

    def _send(self, request: Request) -> None:
        for port in self._ports:
            port.send(request)

    def hear(self, rank: int, answer: Answer) -> None:
        """Called from whatever thread the answer of a worker arrives in."""
        self.figures[rank] = answer.figures
        if answer.kind == "pressure":
            self.on_pressure(answer.figures["pressure_bytes"])
        elif answer.kind != "figures":
            with self._news:
                self._arrived.append(answer)
                self._news.notify_all()

    def take(self) -> list[tuple[str, array[int]]]:
        """What all workers have answered since the last call: ("ready", ids) or ("refused", ids)."""
        taken = []
        while self._arrived:
            answer = self._arrived.popleft()
            if len(self._ports) == 1 or answer.kind == "lost":
                taken.append((answer.kind, answer.ids))
            else:
                taken += self._counted(answer)
        return taken

    def wait(self, seconds: float) -> bool:
        """Waits until something has arrived, at most so long. Returns whether it has."""
        with self._news:
            return self._news.wait_for(lambda: bool(self._arrived), seconds)

    def close(self) -> None:
        for port in self._ports:
            port.close()
        self._ports = []

    def _counted(self, answer: Answer) -> list[tuple[str, array[int]]]:
        """With several workers a block that one of them refused is given up by the others."""
        ready, refused, dropped = array("i"), array("i"), array("i")
        for block in answer.ids:
            voices = self._voices.setdefault(block, [0, 0])
            voices[answer.kind == "refused"] += 1
            if sum(voices) < len(self._ports):
                continue
            del self._voices[block]
            (refused if voices[1] else ready).append(block)
            if voices[0] and voices[1]:
                dropped.append(block)
        if dropped:
            self.drop(dropped)
        return [(kind, ids) for kind, ids in (("ready", ready), ("refused", refused)) if ids]


class DirectPort:
    """The worker is in the scheduler's process."""

    def __init__(self, link: Link, mapper: Mapper) -> None:
        self._mapper = mapper
        self.hello = mapper.memory.hello()
        rank = link.attach(self)
        mapper.answer = lambda answer: link.hear(rank, answer)

    def send(self, request: Request) -> None:
        self._mapper.submit(request)

    def close(self) -> None:
        self._mapper.answer = None


#: The mappers of the workers in this process, by engine and rank.
local_mappers: dict[tuple[str, int], Mapper] = {}
