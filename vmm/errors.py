"""Every exception of vmm. The engine raises these same classes."""

import functools
import sys
from dataclasses import dataclass
from typing import Any


class Error(Exception):
    """Base of all exceptions of vmm."""


class InvalidArgument(Error, ValueError):
    """An argument was bad: the message names it and says what was expected. Nothing has changed."""


class Closed(Error):
    """Something was used after it was closed. Nothing has changed."""


class Forked(Error):
    """A forked child used what its parent owns. Start workers with 'spawn' instead."""


class DriverError(Error):
    """The platform refused a call. The message has the call, its arguments, and the system's own words."""


class DriverOutOfMemory(DriverError, MemoryError):
    """The platform has no memory left, although the budget allowed the call."""


class MappingLimit(DriverError):
    """The process may not have more memory mappings (Linux: vm.max_map_count)."""


class InvariantViolation(Error):
    """The engine's tables contradict each other. That is a bug of vmm: please report it."""


@dataclass(frozen=True)
class TenantFigures:
    """What the tenant that asked has, in bytes, when it is out of pages."""

    name: str  #: empty: what was asked for would have belonged to no tenant
    charged: int  #: kept, or in use by work that is not over
    kept: int
    held: int  #: all its physical memory, also what others may take
    guaranteed: int
    limit: int
    room: int  #: how much more it may be charged now


class OutOfPages(Error, MemoryError):
    """The budget, or the device behind it, cannot give the pages asked for. The call had no effect.
    For a GPU's memory it is a torch.OutOfMemoryError, too, where torch has been imported.

    Four attributes are sizes in bytes: ``asked`` is what the call needed; ``free`` is the part of the budget
    that is not taken, and the free pages of the pool; ``reclaimable`` is mapped, but nobody needs it;
    ``budget`` is the pool's. After a KVCache's step, ``fitting`` has the slots that could have had what they
    need, in the order given, or the sequences where the step was given sequences. ``of_device`` says that the
    budget would have allowed the call, but the device had no more memory. By then vmm has emptied torch's
    cache, unless torch does not use a GPU, its stream was being captured, or emptying failed. ``tenant`` has
    the figures of the tenant that asked; it is None where the pool has no tenants.
    """

    fitting: tuple[Any, ...] = ()
    tenant: TenantFigures | None = None

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


class SequenceLost(Error):
    """Parked sequences came back without some of their tokens, because no copy of those was good: a disk
    failed, say, or somebody wrote to its file. ``sequences`` are these, or their slots where a step was given
    slots, and ``first_lost_token`` has a number for each: so many tokens it still has, as they were. They are
    open: compute the rest again, or close them. All other sequences are as if the call had not been made."""

    def __init__(
        self, message: str, sequences: tuple[Any, ...] = (), first_lost_token: tuple[int, ...] = ()
    ) -> None:
        super().__init__(message)
        self.sequences = sequences
        self.first_lost_token = first_lost_token


def out_of_pages(of_gpu: bool, message: str, *figures: Any) -> OutOfPages:
    """Makes what the engine raises when it is out of pages. A GPU's exception begins with the words of
    torch's own and is a RuntimeError of one argument: accelerate's search for a batch size that fits
    recognises it by these."""
    if not of_gpu or "torch" not in sys.modules:
        return OutOfPages(message, *figures)
    return _out_of_gpu_pages()(f"CUDA out of memory. {message}", *figures)


@functools.cache
def _out_of_gpu_pages() -> type[OutOfPages]:
    import torch  # here, because importing vmm must not import torch

    named = {"__module__": __name__, "__doc__": OutOfPages.__doc__}
    return type("OutOfGpuPages", (OutOfPages, torch.OutOfMemoryError), named)


def __getattr__(name: str) -> Any:  # pickle looks for the class by its name
    if name == "OutOfGpuPages":
        return _out_of_gpu_pages()
    raise AttributeError(f"module 'vmm.errors' has no attribute {name!r}")
