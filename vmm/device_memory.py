"""Room on a full device: what others in this process hold of it, and do not need."""

from __future__ import annotations

import logging
import sys
from typing import Any

logger = logging.getLogger("vmm")

_left: dict[int, int] = {}  # by device, what torch's emptied cache still held: blocks that are used in part


def make_room(device: int, wanted: int) -> None:
    """Empties torch's cache of ``device`` (a CUDA ordinal; -1 is the host), and takes what other pools on it
    do not need. The core calls this when the device has refused ``wanted`` bytes. Never raises: whoever is
    out of memory must hear of that, not of this."""
    try:
        if device >= 0:
            _empty_torch_cache(device)
        _trim_pools(device, wanted)
    except Exception as error:
        logger.warning("no room could be made on a full device: %s", error)


def _empty_torch_cache(device: int) -> None:
    """As torch itself does when the device is full: where it is loaded and uses a GPU. Not while torch's
    current stream is being captured into a graph, which freeing memory would break; and not again for what
    it could not give back the last time."""
    torch: Any = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_initialized() or torch.cuda.is_current_stream_capturing():
        return

    def cached() -> int:
        unused: int = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return unused

    if cached() <= _left.get(device, 0):
        return
    torch.cuda.empty_cache()
    _left[device] = cached()


def _trim_pools(device: int, wanted: int) -> None:
    from vmm.open_pools import open_pools

    for pool in open_pools():
        if pool._ordinal == device and not pool._core.in_child:
            pool._core.trim(wanted)
