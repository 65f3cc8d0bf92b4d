"""A thread of the scheduler's process that gives memory back while the engine is idle.

Idle is what the engine says: no request is unfinished. Its own loop may have stopped by then, so nothing
would call us."""

from __future__ import annotations

import logging
import time
from threading import Event, Thread

from vmm.integrations.vllm.growth import Growth, WorkersLost

logger = logging.getLogger("vmm.vllm")


class IdleWatch:
    def __init__(self, growth: Growth, idle_seconds: float) -> None:
        self._growth, self._idle_seconds = growth, idle_seconds
        self._idle_at: float | None = None
        self._closed = False
        self._wake = Event()
        self._thread = Thread(target=self._watch, name="vmm-idle", daemon=True)
        self._thread.start()

    def idle(self) -> None:
        """The last request has finished. Call it with the growth's lock held."""
        self._idle_at = time.monotonic() + self._idle_seconds
        self._wake.set()

    def busy(self) -> None:
        """A request has arrived. Call it with the growth's lock held."""
        self._idle_at = None

    def press(self, blocks: int) -> None:
        """Others ask for memory; an engine that is idle gives back at once. Safe from any thread, and it
        takes no lock, because the scheduler may hold the growth's while it waits for the caller."""
        self._growth.pressed = blocks
        self._wake.set()

    def close(self) -> None:
        self._closed = True
        self._wake.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._closed:
            due = self._idle_at
            self._wake.wait(None if due is None else max(due - time.monotonic(), 0))
            self._wake.clear()
            try:
                self._look()
            except WorkersLost:
                logger.debug("the workers of vLLM have gone")
                return
            except Exception:
                logger.exception("the idle KV memory of vLLM could not be given back")

    def _look(self) -> None:
        with self._growth.lock:
            if self._closed or self._growth.running:
                return
            due = self._idle_at is not None and time.monotonic() >= self._idle_at
            if not due and not self._growth.pressed:
                return
            # All of it, also when others ask for less: while it holds as much as they would have, they could
            # not ask again, although nobody here needs it.
            self._idle_at, self._growth.pressed = None, 0
            gone = self._growth.give_back()
            logger.debug("idle: gave back the memory of %d KV blocks", gone)
