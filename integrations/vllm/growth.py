"""How many blocks have memory: asked for ahead of need, given back when nobody needs them."""

from __future__ import annotations

import time
from array import array
from collections.abc import Callable
from threading import RLock
from typing import TYPE_CHECKING, Protocol

from vmm.integrations.vllm import compat
from vmm.integrations.vllm.rows import Rows

if TYPE_CHECKING:
    from vllm.v1.core.block_pool import BlockPool
    from vllm.v1.core.kv_cache_utils import KVCacheBlock

_PAUSE_S = 0.02
_LONGEST_WAIT_S = 10.0  # for workers that do not answer
_RETRY_S = 0.02  # after workers have refused memory; at most eight times as long when they refuse again


class WorkersLost(RuntimeError):
    """A worker's process has died, or its thread that maps has."""


class Workers(Protocol):
    """What is needed of Link."""

    def announce(self, ids: array[int], row: int) -> None: ...
    def drop(self, ids: array[int]) -> None: ...
    def take(self) -> list[tuple[str, array[int]]]: ...
    def wait(self, seconds: float) -> bool: ...


class Growth:
    """Which blocks of one block pool are in its free queue: only those that all workers have confirmed. Call
    every method with `lock` held; a scheduler that waits for its workers is the only one who holds it for
    long."""

    def __init__(
        self,
        pool: BlockPool,
        workers: Workers,
        *,
        row: int,
        capacity: int,
        groups: int = 1,
        shrinks: bool = True,
    ) -> None:
        """``groups``: of blocks, of which each request uses its own. ``shrinks``: whether memory may go while
        requests run."""
        self.lock = RLock()
        self.rows = Rows(pool.num_gpu_blocks, row, capacity)
        self.running = 0  # requests that have arrived and are not finished
        self.stalls = 0  # how often the scheduler waited because memory was not there ahead of need
        self.fresh = 0  # at least so many blocks at the front of the queue hold nothing that is cached
        self._pool, self._workers, self._shrinks = pool, workers, shrinks
        self._groups = groups
        self._promised: dict[str, int] = {}  # blocks for the prompts of requests that have none yet
        self._promised_blocks = 0
        self._tried: set[str] = set()  # requests that nobody else kept from starting
        self._rescue = row
        self.reserve = 0  # blocks that vLLM leaves free when it starts a request
        self.given_back = 0  # blocks
        #: So many blocks would satisfy others who ask for memory. Any thread may set it.
        self.pressed = 0
        self._refused_until = 0.0
        self._retry_s = _RETRY_S
        self._lost = False
        self._freed: list[list[KVCacheBlock]] = []  # in this step
        self._freed_before: list[list[KVCacheBlock]] = []  # in the step before
        compat.take_all_free(pool)

    # ---- growing

    @property
    def low(self) -> int:
        """With fewer fresh blocks than this, more are asked for: what running requests need for some steps,
        and what those need that come."""
        return self.rows.row + self.running * self._groups + self.reserve + self._promised_blocks

    def can_grow(self) -> bool:
        return self.rows.room > 0 and time.monotonic() >= self._refused_until

    def ask(self, blocks: int) -> None:
        """Asks for so many more blocks, as far as there is room."""
        ids = self.rows.ask(blocks)
        if ids:
            self._workers.announce(ids, self.rows.row)

    def collect(self) -> None:
        """Takes the workers' answers."""
        for kind, ids in self._workers.take():
            if kind == "lost":
                self._lost = True
                continue
            ready = kind == "ready"
            self.rows.answer(ids, ready)
            if ready:
                compat.put_first(self._pool, compat.blocks_of(self._pool, ids))
                self.fresh += len(ids)
                self._retry_s = _RETRY_S
            else:
                self._refused_until = time.monotonic() + self._retry_s
                self._retry_s = min(2 * self._retry_s, 8 * _RETRY_S)
        if self._lost:
            raise WorkersLost("VmmConnector: a worker has gone, and the KV cache with it")

    def refill(self) -> None:
        """Sees to it that enough fresh blocks are there, or on their way."""
        self.collect()
        low = self.low
        if self.fresh + self.rows.asked >= low or not self.can_grow():
            return
        self.fresh = max(self.fresh, self._counted(low))
        lack = low - self.fresh - self.rows.asked
        if lack > 0:
            self.ask(lack + low)

    def _counted(self, most: int) -> int:
        """How many blocks at the front of the queue hold nothing that is cached, counted up to ``most``."""
        if self._pool.get_num_free_blocks() == self.fresh:
            return self.fresh
        count = 0
        for block in compat.from_the_front(self._pool):
            if compat.is_cached(block) or count == most:
                break
            count += 1
        return count

    def await_fresh(self, blocks: int) -> None:
        """Waits for fresh blocks, so that nothing cached is evicted while there is memory."""
        if not self.rows.asked and not self.can_grow():
            return
        self.collect()
        if self.fresh < blocks:
            self.fresh = max(self.fresh, self._counted(blocks))
        lack = blocks - self.fresh - self.rows.asked
        if lack > 0 and self.can_grow():
            self.ask(lack)
        self._await(lambda: self.fresh >= blocks)

    def rescue(self) -> bool:
        """A running request has found too few blocks. Waits for more. False when there are none; then
        somebody is preempted, as with stock."""
        before = self._pool.get_num_free_blocks()
        self.collect()
        if self._pool.get_num_free_blocks() == before and not self.rows.asked and self.can_grow():
            self.ask(self._rescue)
            self._rescue *= 2  # it may need more than that: then it is here again in the next step
        self._await(lambda: self._pool.get_num_free_blocks() > before)
        return self._pool.get_num_free_blocks() > before

    def wanted(self, request: str, blocks: int) -> None:
        """A waiting request is about to be given at most so many blocks. They are asked for, and where
        nothing runs that could go on meanwhile, waited for."""
        self.collect()
        idle = self.rows.present == self._pool.get_num_free_blocks()
        if idle and self._promised.get(request, 0) >= blocks and request in self._tried:
            blocks = 2 * self._promised[request]  # it was not enough
        self._promise(request, blocks)
        self.refill()
        if not idle:
            return
        self._tried.add(request)
        blocks = min(blocks + self.reserve, self.rows.capacity - 1)
        lack = blocks - self._pool.get_num_free_blocks() - self.rows.asked
        if lack > 0 and self.can_grow():
            self.ask(lack)
        self._await(lambda: self._pool.get_num_free_blocks() >= blocks)
        if self._pool.get_num_free_blocks() < blocks and not self.can_grow():
            # Others must give memory back first. The scheduler tries again at once, and would spin.
            self._workers.wait(_PAUSE_S)

    def _await(self, enough: Callable[[], bool]) -> None:
        until = time.monotonic() + _LONGEST_WAIT_S
        self.collect()
        if enough() or not self.rows.asked:
            return
        self.stalls += 1
        while not enough() and self.rows.asked and (left := until - time.monotonic()) > 0:
            self._workers.wait(left)
            self.collect()

    # ---- requests

    def arrives(self, request: str, blocks: int) -> None:
        """``blocks`` is what it needs to start."""
        self.running += 1
        self._promise(request, blocks)
        self.refill()

    def _promise(self, request: str, blocks: int) -> None:
        blocks = min(blocks, self.rows.capacity)
        self._promised_blocks += blocks - self._promised.get(request, 0)
        self._promised[request] = blocks

    def starts(self, request: str) -> None:
        """It has been given blocks."""
        self._promised_blocks -= self._promised.pop(request, 0)
        self._tried.discard(request)

    def leaves(self, request: str) -> None:
        self.starts(request)
        self.running -= 1

    def step(self) -> None:
        """Once per scheduled step."""
        self._freed_before, self._freed = self._freed, []
        self._rescue = self.low
        if self.pressed and self._shrinks:
            asked, self.pressed = self.pressed, 0
            self.give_back(asked)
        self.refill()

    def freed(self, blocks: list[KVCacheBlock]) -> None:
        self._freed.append(blocks)

    # ---- giving back

    def give_back(self, most: int | None = None) -> int:
        """Gives back the memory of rows whose blocks are all free, the least recently used first: of all of
        them, or of as many as hold ``most`` blocks. While requests run, what was freed less than two steps
        ago stays: work under way may still read it. Returns the blocks given back."""
        self.collect()
        ids = array("i")
        for row in self._rows_by_age():
            if most is not None and len(ids) >= most:
                break
            mine = compat.blocks_of(self._pool, self.rows.blocks_of(row))
            for block in mine:
                compat.take_free(self._pool, block)
                ids.append(block.block_id)
            self.rows.give_back(row)
        if ids:
            self.fresh = 0
            self.given_back += len(ids)
            self._workers.drop(ids)
        return len(ids)

    def _rows_by_age(self) -> list[int]:
        """The rows that may go, in the order of their last use; not the first, which is the floor."""
        free: dict[int, int] = {}
        last: dict[int, int] = {}
        for place, block in enumerate(compat.from_the_front(self._pool)):
            row = self.rows.row_of(block.block_id)
            free[row] = free.get(row, 0) + 1
            last[row] = place
        recent = {0}
        if self.running:
            recent |= {
                self.rows.row_of(block.block_id)
                for blocks in self._freed + self._freed_before
                for block in blocks
            }
        whole = [
            row for row, count in free.items() if row not in recent and count == len(self.rows.blocks_of(row))
        ]
        return sorted((row for row in whole if row in self.rows.present_rows), key=last.__getitem__)
