"""A worker's thread that maps and unmaps blocks in the order in which the scheduler asks."""

from __future__ import annotations

import logging
from array import array
from collections.abc import Callable
from itertools import groupby
from queue import SimpleQueue
from threading import Thread
from typing import TYPE_CHECKING, NamedTuple, Protocol

if TYPE_CHECKING:
    from vmm.integrations.vllm.memory import WorkerMemory

logger = logging.getLogger("vmm.vllm")


class Request(NamedTuple):
    kind: str  #: "announce" or "drop"
    ids: array[int]
    row: int = 1  #: so many neighbours come and go together


class Answer(NamedTuple):
    kind: str  #: "ready", "refused" or "lost"
    ids: array[int]
    figures: dict[str, int]


class Memory(Protocol):
    """What the mapper needs of WorkerMemory."""

    def hello(self) -> dict[str, int]: ...
    def keep(self, ids: array[int]) -> bool: ...
    def drop(self, ids: array[int]) -> None: ...
    def figures(self) -> dict[str, int]: ...


class Mapper:
    """Serves one scheduler, which hears of every announced block exactly once: ready, or refused."""

    def __init__(self, memory: Memory) -> None:
        self.memory = memory
        self.answer: Callable[[Answer], None] | None = None
        self._requests: SimpleQueue[Request | None] = SimpleQueue()
        self._thread = Thread(target=self._serve, name="vmm-mapper", daemon=True)
        self._thread.start()

    def submit(self, request: Request) -> None:
        self._requests.put(request)

    def close(self) -> None:
        self._requests.put(None)
        self._thread.join()

    def _serve(self) -> None:
        while (request := self._requests.get()) is not None:
            try:
                self._do(request)
            except Exception:
                logger.exception("the KV memory of vLLM could not %s blocks", request.kind)
                if request.kind == "announce":
                    self._reply("refused", request.ids)

    def _do(self, request: Request) -> None:
        if request.kind == "drop":
            self.memory.drop(request.ids)
        elif self.memory.keep(request.ids):
            self._reply("ready", request.ids)
        else:
            self._keep_what_fits(request.ids, request.row)

    def _keep_what_fits(self, ids: array[int], row: int) -> None:
        """There is not memory for all of them, so what fits is found row by row."""
        done = 0
        for _, group in groupby(ids, lambda block: block // row):
            some = array("i", group)
            if not self.memory.keep(some):
                self._reply("refused", ids[done:])
                return
            self._reply("ready", some)
            done += len(some)

    def _reply(self, kind: str, ids: array[int]) -> None:
        if self.answer is not None:
            self.answer(Answer(kind, ids, self.memory.figures()))
