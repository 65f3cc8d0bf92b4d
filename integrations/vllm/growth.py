"""Which blocks have memory: asked for ahead of need, row by row, and given back when nobody needs them."""

from __future__ import annotations

import heapq
import logging
import time
from array import array
from collections.abc import Callable, Iterable
from threading import Condition, RLock, Thread
from typing import TYPE_CHECKING, Protocol

from vmm.integrations.vllm import compat

if TYPE_CHECKING:
    from vllm.v1.core.block_pool import BlockPool
    from vllm.v1.core.kv_cache_utils import KVCacheBlock

logger = logging.getLogger("vmm.vllm")

_LONGEST_WAIT_S = 10.0  # for memory that workers have said nothing about
_RETRY_S = 0.5  # after workers have refused memory


class Workers(Protocol):
    """What is needed of Link."""

    def announce(self, ids: array[int]) -> None: ...
    def drop(self, ids: array[int]) -> None: ...
    def take(self) -> list[tuple[str, array[int]]]: ...
    def wait(self, seconds: float) -> bool: ...


class Growth:
    """The rows of one block pool. A row is a few neighbouring blocks that come and go together. It is absent
    (no memory, not in the pool's free queue), asked for, or present.

    Every method but `close` is called with `lock` held, which is never held for long.
    """

    def __init__(
        self,
        pool: BlockPool,
        workers: Workers,
        *,
        row: int,
        capacity: int,
        idle_seconds: float,
    ) -> None:
        self.lock = RLock()
        self.capacity = min(capacity, pool.num_gpu_blocks)
        self.present = 0  # blocks that have memory, without the null block
        self.running = 0  # requests that have arrived and are not finished
        self.stalls = 0
        self.fresh = 0  # at least so many blocks at the front of the queue hold nothing that is cached
        self._pool, self._workers, self._row = pool, workers, row
        compat.take_all_free(pool)
        self._absent = list(range(-(-pool.num_gpu_blocks // row)))  # a heap: lowest first
        self._asked: dict[int, int] = {}  # row -> how many of its blocks are not answered yet
        self._asked_blocks = 0
        self._rows: set[int] = set()  # present
        self._promised: dict[str, int] = {}  # blocks for the prompts of requests that have none yet
        self._refused_until = 0.0
        self._idle_seconds = idle_seconds
        self._idle_at: float | None = None
        self._wake = Condition(self.lock)
        self._closed = False
        self._thread = Thread(target=self._watch, name="vmm-idle", daemon=True)
        self._thread.start()

    def blocks_of(self, row: int) -> range:
        """The null block is never in the queue."""
        return range(max(row * self._row, 1), min((row + 1) * self._row, self._pool.num_gpu_blocks))

    # ---- growing

    @property
    def low(self) -> int:
        """With fewer fresh blocks than this, more are asked for: what running requests need for some steps,
        and what has been promised to those that come."""
        return self._row + self.running + sum(self._promised.values())

    def can_grow(self) -> bool:
        return bool(self._absent) and self._room() > 0 and time.monotonic() >= self._refused_until

    def _room(self) -> int:
        return self.capacity - 1 - self.present - self._asked_blocks

    def collect(self) -> None:
        """Takes the workers' answers."""
        for kind, ids in self._workers.take():
            if kind == "lost":
                raise RuntimeError("VmmConnector: a worker's process has gone, so its KV memory has, too")
            blocks = [self._pool.blocks[block] for block in ids if block]
            if kind == "ready":
                compat.put_first(self._pool, blocks)
                self.present += len(blocks)
                self.fresh += len(blocks)
            else:
                self._refused_until = time.monotonic() + _RETRY_S
            self._answered(ids, kind == "ready")

    def _answered(self, ids: Iterable[int], ready: bool) -> None:
        for block in ids:
            if block == 0:
                continue
            row = block // self._row
            self._asked_blocks -= 1
            self._asked[row] -= 1
            if self._asked[row] == 0:
                del self._asked[row]
                if ready:
                    self._rows.add(row)
                else:
                    heapq.heappush(self._absent, row)

    def ask(self, blocks: int) -> None:
        """Asks for at least so many more blocks than those asked for already, as far as there are any."""
        ids = array("i")
        wanted = min(blocks, self._room())
        while len(ids) < wanted and self._absent:
            row = heapq.heappop(self._absent)
            mine = self.blocks_of(row)
            if not mine:
                continue
            if len(mine) > self._room() - len(ids):
                heapq.heappush(self._absent, row)
                break
            self._asked[row] = len(mine)
            ids.extend(mine)
        if ids:
            self._asked_blocks += len(ids)
            self._workers.announce(ids)

    def refill(self) -> None:
        """Sees to it that enough fresh blocks are there or on their way."""
        self.collect()
        low = self.low
        if self.fresh < low and not self._asked_blocks:
            self.fresh = self._counted(low)
        lack = low - self.fresh - self._asked_blocks
        if lack > 0 and self.can_grow():
            self.ask(lack + low)

    def _counted(self, most: int) -> int:
        """How many blocks at the front of the queue hold nothing that is cached; it counts no further than
        ``most``."""
        count = 0
        for block in compat.from_the_front(self._pool):
            if block.block_hash is not None or count == most:
                break
            count += 1
        return count

    def await_fresh(self, blocks: int) -> None:
        """Waits for fresh blocks that are on their way, so that nothing cached is evicted while there is
        memory."""
        if self.fresh < blocks and not self._asked_blocks and self.can_grow():
            self.fresh = self._counted(blocks)
            if self.fresh < blocks:
                self.ask(blocks - self.fresh + self._row)
        self._await(lambda: self.fresh >= blocks)

    def await_free(self, blocks: int) -> bool:
        """Grows until so many blocks are free, and waits for them. False when there is no memory for them."""
        lack = blocks - self._pool.get_num_free_blocks() - self._asked_blocks
        if lack > 0 and self.can_grow():
            self.ask(lack)
        return self._await(lambda: self._pool.get_num_free_blocks() >= blocks)

    def ask_ahead(self, blocks: int) -> None:
        """Asks for more, unless so many are on their way."""
        lack = blocks - self._asked_blocks
        if lack > 0 and self.can_grow():
            self.ask(lack)

    def _await(self, enough: Callable[[], bool]) -> bool:
        until = time.monotonic() + _LONGEST_WAIT_S
        self.collect()
        if enough() or not self._asked_blocks:
            return enough()
        self.stalls += 1
        while not enough() and self._asked_blocks and (left := until - time.monotonic()) > 0:
            self._workers.wait(left)
            self.collect()
        return enough()

    # ---- requests

    def arrives(self, request: str, blocks: int) -> None:
        self.running += 1
        self._idle_at = None
        self._promised[request] = blocks
        self.refill()

    def starts(self, request: str) -> None:
        """It has been given blocks."""
        self._promised.pop(request, None)

    def leaves(self, request: str) -> None:
        self._promised.pop(request, None)
        self.running -= 1
        if self.running == 0:
            self._idle_at = time.monotonic() + self._idle_seconds
            self._wake.notify()

    # ---- giving back

    def give_back(self) -> int:
        """Gives back the memory of all rows but the first, whose blocks are all free. Returns the blocks."""
        self.collect()
        ids = array("i")
        for row in sorted(self._rows - {0}):
            blocks: list[KVCacheBlock] = [self._pool.blocks[block] for block in self.blocks_of(row)]
            if not all(compat.is_free(block) for block in blocks):
                continue
            for block in blocks:
                compat.take_free(self._pool, block)
                ids.append(block.block_id)
            self._rows.remove(row)
            heapq.heappush(self._absent, row)
        if ids:
            self.present -= len(ids)
            self.fresh = 0
            self._workers.drop(ids)
        return len(ids)

    def _watch(self) -> None:
        with self._wake:
            while not self._closed:
                left = None if self._idle_at is None else self._idle_at - time.monotonic()
                if left is None or left > 0:
                    self._wake.wait(left)
                    continue
                self._idle_at = None
                try:
                    gone = self.give_back()
                except Exception:
                    logger.exception("the idle KV memory of vLLM could not be given back")
                else:
                    logger.debug("idle: gave back the memory of %d KV blocks", gone)

    def close(self) -> None:
        with self._wake:
            self._closed = True
            self._wake.notify()
        self._thread.join()
