"""Looking at a pool from outside: the kernel's account of it, and when its pager is at rest."""

import os
from pathlib import Path
from time import monotonic, sleep
from typing import NamedTuple

from vmm.pool import Pool


class KernelAccount(NamedTuple):
    """What Linux says of a pool's memory, from the memfd's blocks and /proc/self/smaps."""

    committed_bytes: int  #: in the memfd: the pool's ``created_bytes``
    resident_bytes: int  #: of its mappings: the pool's ``mapped_bytes``
    mappings: int  #: lines of /proc/self/maps


def kernel_account(pool: Pool) -> KernelAccount:
    """The account of ``pool`` now; compare it with the pool's own only when the pager is at rest."""
    memfd = pool._core.memfd
    name = os.readlink(f"/proc/self/fd/{memfd}").split(" ")[0] + " "  # "/memfd:vmm-0 (deleted)"
    resident = mappings = 0
    ours = False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if not line.split(" ")[0].endswith(":"):  # a mapping's first line
            ours = name in line
            mappings += ours
        elif ours and line.startswith("Rss:"):
            resident += int(line.split()[1]) * 1024
    return KernelAccount(os.fstat(memfd).st_blocks * 512, resident, mappings)


def settle(pool: Pool, *, still_seconds: float = 0.05, timeout_seconds: float = 30) -> None:
    """Waits until nothing has been mapped or unmapped for ``still_seconds``. Raises TimeoutError."""
    deadline = monotonic() + timeout_seconds
    before = None
    while before != (now := (pool.stats().mapped_bytes, pool.stats().created_bytes)):
        if monotonic() > deadline:
            raise TimeoutError("the pager does not come to rest")
        before = now
        sleep(still_seconds)
