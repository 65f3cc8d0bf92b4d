"""The open pools of this process, and how they end when it exits."""

from __future__ import annotations

import atexit
import sys
import time
import weakref
from contextlib import suppress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vmm.pool import Pool

_EXIT_PATIENCE_S = 5.0  # for work that is still under way at exit: it may never end

_open_pools: weakref.WeakSet[Pool] = weakref.WeakSet()


def remember(pool: Pool) -> None:
    """From here on ``pool`` is among `open_pools`, and is closed when the process exits."""
    _open_pools.add(pool)


def open_pools() -> list[Pool]:
    """The pools of this process, on every device. Safe from any thread."""
    # Other threads may change the set meanwhile, so this does not iterate over it.
    found = (each() for each in tuple(_open_pools.data))  # type: ignore[attr-defined]
    return [pool for pool in found if pool is not None]


def pool_of_address(address: int) -> Pool | None:
    """The pool whose arena has the address, whether or not it is mapped."""
    for pool in open_pools():
        if not pool._core.in_child and pool._core.holds(address):
            return pool
    return None


@atexit.register
def _close_all() -> None:
    """Closes every pool. Neither a pool that cannot be closed, or not in time, nor Ctrl-C meanwhile, nor the
    lack of anywhere to say so may hold up the other pools or the exit."""
    deadline = time.monotonic() + _EXIT_PATIENCE_S
    for pool in list(_open_pools):
        try:
            unsaid = pool._close_at_exit(max(0.0, deadline - time.monotonic()))
        except BaseException as error:
            unsaid = [str(error) or type(error).__name__]
        with suppress(BaseException):
            for text in unsaid:
                print(f"vmm: closing {pool.device} at exit: {text}", file=sys.stderr or sys.__stderr__)
