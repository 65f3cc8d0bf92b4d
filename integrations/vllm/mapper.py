"""A worker's thread that maps and unmaps blocks in the order in which the scheduler asks."""

from __future__ import annotations

import logging
from array import array
from collections.abc import Callable
from itertools import groupby
from queue import SimpleQueue
from threading import Thread
from typing import Any, NamedTuple, Protocol

logger = logging.getLogger("vmm.vllm")

_PORTION_BYTES = 32 << 20


class Request(NamedTuple):
    kind: str  #: "announce" or "drop"
    ids: array[int]
    row: int = 1  #: so many neighbours come and go together


class Answer(NamedTuple):
    kind: str  #: "ready", "refused", "figures", "pressure" (which is among the figures) or "lost"
    ids: array[int]
    figures: dict[str, int]


class Memory(Protocol):
    """What the mapper needs of WorkerMemory."""

    block_bytes: int

    def hello(self) -> dict[str, Any]: ...
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

    def press(self) -> None:
        """Tells the scheduler that others ask for memory. Safe from any thread."""
        self._reply("pressure", array("i"))

    def close(self) -> None:
        self._requests.put(None)
        self._thread.join()

    def _serve(self) -> None:
        try:
            while (request := self._requests.get()) is not None:
                if request.kind == "drop":
                    self._drop(request.ids)
                else:
                    self._announce(request)
        except Exception:
            logger.exception("the thread that maps vLLM's KV cache has failed")
            if (answer := self.answer) is not None:  # a scheduler that waits for it must not wait for ever
                answer(Answer("lost", array("i"), {}))

    def _drop(self, ids: array[int]) -> None:
        try:
            self.memory.drop(ids)
            self._reply("figures", array("i"))
        except Exception:
            logger.exception("vLLM's KV cache could not give %d blocks back", len(ids))

    def _announce(self, request: Request) -> None:
        rows = [array("i", row) for _, row in groupby(request.ids, lambda block: block // request.row)]
        # In portions, so that the first blocks are ready long before the last of many.
        portion = max(_PORTION_BYTES // (self.memory.block_bytes * request.row), 1)
        while rows:
            portion = min(portion, len(rows))
            ids = _joined(rows[:portion])
            if self._kept(ids):
                self._reply("ready", ids)
                rows = rows[portion:]
            elif portion > 1:
                portion //= 2  # some of it may fit
            else:
                self._reply("refused", _joined(rows))
                return

    def _kept(self, ids: array[int]) -> bool:
        try:
            return self.memory.keep(ids)
        except Exception:
            logger.exception("vLLM's KV cache could not have %d blocks more", len(ids))
            return False

    def _reply(self, kind: str, ids: array[int]) -> None:
        answer = self.answer  # it ends in another thread
        if answer is not None:
            answer(Answer(kind, ids, self.memory.figures()))


def _joined(rows: list[array[int]]) -> array[int]:
    ids = array("i")
    for row in rows:
        ids.extend(row)
    return ids
