"""Which blocks have memory, counted in rows: a few neighbouring blocks that come and go together, because
they share pages."""

from __future__ import annotations

import heapq
from array import array


class Rows:
    """A row is absent (it has no memory), asked for, or present. Block 0 is vLLM's null block, which always
    has memory and counts nowhere."""

    def __init__(self, blocks: int, row: int, capacity: int) -> None:
        self.row = row
        self.present = 0  # blocks
        self.asked = 0  # blocks whose workers have not answered yet
        self._blocks = blocks
        #: The most blocks that can have memory at a time, the null block included.
        self.capacity = blocks if capacity >= blocks else capacity // row * row
        self._absent = list(range(-(-blocks // row)))  # a heap: lowest first
        self._unanswered: set[int] = set()
        self._present: set[int] = set()

    def blocks_of(self, row: int) -> range:
        return range(max(row * self.row, 1), min((row + 1) * self.row, self._blocks))

    def row_of(self, block: int) -> int:
        return block // self.row

    @property
    def room(self) -> int:
        """How many blocks more could have memory."""
        return self.capacity - 1 - self.present - self.asked

    @property
    def present_rows(self) -> set[int]:
        return self._present

    def ask(self, blocks: int) -> array[int]:
        """The blocks of as many absent rows as hold ``blocks``, as far as there are any and there is room;
        they are asked for from now on."""
        ids = array("i")
        wanted = min(blocks, self.room)
        while self._absent and len(ids) < wanted:
            mine = self.blocks_of(self._absent[0])
            if len(mine) > self.room - len(ids):
                break
            row = heapq.heappop(self._absent)
            if mine:
                self._unanswered.add(row)
                ids.extend(mine)
        self.asked += len(ids)
        return ids

    def answer(self, ids: array[int], ready: bool) -> None:
        """Whole rows, one after the other: all ready, or all refused."""
        place = 0
        while place < len(ids):
            row = self.row_of(ids[place])
            self._unanswered.remove(row)
            if ready:
                self._present.add(row)
            else:
                heapq.heappush(self._absent, row)
            place += len(self.blocks_of(row))
        self.asked -= place
        if ready:
            self.present += place

    def give_back(self, row: int) -> None:
        self._present.remove(row)
        self.present -= len(self.blocks_of(row))
        heapq.heappush(self._absent, row)
