"""Every exception of vmm. The engine raises these same classes."""

import functools
import sys
from typing import Any


class Error(Exception):
    """Base of all exceptions of vmm."""


class InvalidArgument(Error, ValueError):
    """A bad argument: the message names it and what was expected. Nothing has changed."""


class Closed(Error):
    """Use of something that was closed. Nothing has changed."""


class Forked(Error):
    """Use in a forked child of what its parent owns: start workers with 'spawn' instead."""


class DriverError(Error):
    """The platform refused a call: the call, its arguments, and the system's own words."""


class DriverOutOfMemory(DriverError, MemoryError):
    """The platform has no memory left, although the budget allowed the call."""


class MappingLimit(DriverError):
    """The process may not have more memory mappings (Linux: vm.max_map_count)."""


class InvariantViolation(Error):
    """The engine's tables contradict each other: a bug of vmm. Please report it."""


class OutOfPages(Error, MemoryError):
    """The budget, or the device behind it, cannot give the pages asked for. The call had no effect.
    For a GPU's memory it is a torch.OutOfMemoryError, too, where torch has been imported.

    Attributes, all in bytes: ``asked``; ``free`` (budget not taken, and free pages of the pool);
    ``reclaimable`` (mapped, but needed by nobody); ``budget``. ``fitting``: of a KVCache's step, the slots
    that could have had what they need, in the order given; sequences where the step was given sequences.
    ``of_device``: the budget would have allowed it, but the device had no more memory. By then torch's cache
    was emptied, unless torch is not used on a GPU, its stream was being captured, or that failed.
    """

    fitting: tuple[Any, ...] = ()

    def __init__(  # noqa: PLR0917 - the engine passes by position
        self,
        message: str,
        asked: int = 0,
        free: int = 0,
        reclaimable: int = 0,
        budget: int = 0,
        of_device: bool = False,
    ) -> None:
        super().__init__(message)
        self.asked = asked
        self.free = free
        self.reclaimable = reclaimable
        self.budget = budget
        self.of_device = of_device


def out_of_pages(of_gpu: bool, message: str, *figures: Any) -> OutOfPages:
    """What the engine raises when it is out of pages. A GPU's begins as torch's own do: by these words, and
    by being a RuntimeError of one argument, accelerate's search for a batch size that fits recognises it."""
    if not of_gpu or "torch" not in sys.modules:
        return OutOfPages(message, *figures)
    return _out_of_gpu_pages()(f"CUDA out of memory. {message}", *figures)


@functools.cache
def _out_of_gpu_pages() -> type[OutOfPages]:
    import torch  # here, because `import vmm` must not

    named = {"__module__": __name__, "__doc__": OutOfPages.__doc__}
    return type("OutOfGpuPages", (OutOfPages, torch.OutOfMemoryError), named)


def __getattr__(name: str) -> Any:  # for pickle
    if name == "OutOfGpuPages":
        return _out_of_gpu_pages()
    raise AttributeError(f"module 'vmm.errors' has no attribute {name!r}")
