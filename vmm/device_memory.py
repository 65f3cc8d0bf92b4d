"""Room on a full device, from others in this process who hold its memory and do not need it."""

from __future__ import annotations

import logging
import sys
from typing import Any

from vmm.open_pools import open_pools

logger = logging.getLogger("vmm")

# By device: the bytes that torch's cache still held after it was emptied, in blocks that are used in part.
_left: dict[int, int] = {}


def make_room(device: int, wanted: int) -> None:
    """Empties torch's cache of ``device`` (a CUDA ordinal; -1 is the host), and has other pools on it give
    back what they do not need. The core calls this when the device has refused ``wanted`` bytes. It never
    raises: whoever is out of memory must hear of that, and not of a failure here."""
    try:
        if device >= 0:
            _empty_torch_cache(device)
        for pool in open_pools():
            if pool._ordinal == device and not pool._core.in_child:
                pool._core.trim(wanted)
    except Exception as error:
        logger.warning("no room could be made on a full device: %s", error)


def _empty_torch_cache(device: int) -> None:
    """Empties torch's cache, where torch is loaded and uses a GPU, as torch itself does when the device is
    full. It is not emptied while torch's current stream is being captured into a graph, which freeing memory
    would break, nor again for what it could not give back the last time."""
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
