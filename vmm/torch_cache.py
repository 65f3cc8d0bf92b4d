"""What torch caches of a GPU's memory: given back when the device is full, as torch itself does then."""

import logging
import sys

logger = logging.getLogger("vmm")


def give_back() -> None:
    """Empties torch's caches, on every GPU, where torch has been imported and uses one. Not while torch's
    current stream is being captured into a graph: freeing memory would break the capture. Never raises."""
    torch = sys.modules.get("torch")
    try:
        if torch is None or not torch.cuda.is_initialized() or torch.cuda.is_current_stream_capturing():
            return
        torch.cuda.empty_cache()
    except Exception as error:  # whoever is out of memory must hear of that, not of this
        logger.warning("torch's cache could not be emptied: %s", error)
