"""A worker's thread that tells the scheduler when other processes of its share ask for memory."""

from __future__ import annotations

from threading import Event, Thread
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import vmm
    from vmm.integrations.vllm.mapper import Mapper

_LONGEST_S = 1.0
_REPEATED_S = 0.1  # while they go on asking


class PressureWatch:
    def __init__(self, pool: vmm.Pool, mapper: Mapper) -> None:
        self._pool, self._mapper = pool, mapper
        self._closed = Event()
        self._thread = Thread(target=self._watch, name="vmm-pressure", daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._closed.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._closed.is_set():
            if self._pool.await_pressure(_LONGEST_S):
                self._mapper.press()
                self._closed.wait(_REPEATED_S)
