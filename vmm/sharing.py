"""Who may use a GPU's pages beside the GPU itself: other GPUs, network cards, other processes."""

import operator
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from vmm.errors import InvalidArgument
from vmm.units import rounded_up
from vmm.user_warnings import warn_user

_LEAST_ARENA = 2**30  # pool.cpp, least_arena
# On older devices (Volta, Turing) replacing a mapping beside running kernels has faulted: kvcached's issue
# 465.
TRIED_CAPABILITY = 80
OLD_DEVICES_FAULT = (
    "vmm needs 8.0 or later to map memory safely while kernels run: on older GPUs that has ended processes"
    " with illegal addresses"
)
_warned: set[str] = set()  # the devices that this process has been warned of


@dataclass(frozen=True)
class ExportedPage:
    """A page for another process, as `Pool.export` gives it.

    Close ``file_descriptor`` here after passing it on (``socket.send_fds``, ``pass_fds``); the receiver
    closes its own. Until the last descriptor is closed and the last import released, the device does not get
    the page's memory back, whatever becomes of the pool. ``exec`` closes it; a forked child has it, too.
    """

    file_descriptor: int
    offset_bytes: int  #: of the address that was asked for, from the page's start
    page_bytes: int  #: of all that is exported


def checked_peers(peers: object, name: str) -> list[int]:
    """The CUDA devices' numbers, for a pool on the device ``name``. Raises InvalidArgument for anything else,
    and for peers of the CPU. Whether the devices are there, differ from the pool's own and can reach it is
    for the driver to say."""
    if isinstance(peers, str | bytes) or not isinstance(peers, Iterable):
        raise InvalidArgument(f"peers is {peers!r}; expected numbers of CUDA devices, like (1, 2)")
    numbers = []
    for peer in peers:
        try:
            number = operator.index(peer)
        except TypeError:
            number = -1
        if isinstance(peer, bool) or not 0 <= number < 2**31:
            raise InvalidArgument(f"peers has {peer!r}; expected numbers of CUDA devices, like (1, 2)")
        numbers.append(number)
    if numbers and name == "cpu":
        raise InvalidArgument(f"peers is {tuple(numbers)}; expected none: the pool is on the CPU")
    return numbers


def checked_flag(argument: str, value: object, name: str) -> bool:
    """``value``, a bool, for a pool on the device ``name``. Raises InvalidArgument for anything else, and for
    True on the CPU."""
    if not isinstance(value, bool):
        raise InvalidArgument(f"{argument} is {value!r}; expected True or False")
    if value and name == "cpu":
        why = {
            "rdma": "GPUDirect RDMA is of a GPU's memory",
            # All pages of the host driver lie in one file: whoever had its descriptor would have them all.
            "shareable": "the CPU's pages lie in one file, which could only be shared as a whole",
        }
        raise InvalidArgument(f"{argument} is True; expected False for a pool on the CPU: {why[argument]}")
    return value


def arena_bytes(budget_bytes: int) -> int:
    """How many addresses a GPU's pool reserves; 0 stands for the engine's default, 256 times the budget.
    Under WSL2 Windows gives few (reservations of 32 GiB have failed: node-llama-cpp's issue 610), so there it
    is twice the budget, and at least 1 GiB."""
    if not on_wsl2():
        return 0
    return rounded_up(max(2 * budget_bytes, _LEAST_ARENA), _LEAST_ARENA)


def on_wsl2(version: str = "/proc/version", device: str = "/dev/dxg") -> bool:
    """Whether this is Windows's subsystem for Linux, where GPUs are driven by Windows's driver model."""
    if Path(device).exists():
        return True
    try:
        return "microsoft" in Path(version).read_text().lower()
    except OSError:
        return False


def warn_of_old_devices(name: str, compute_capability: int) -> None:
    """Warns, once a process for each device, of devices on which mapping beside running kernels is not known
    to work because they are old."""
    if compute_capability == 0 or compute_capability >= TRIED_CAPABILITY or name in _warned:
        return
    _warned.add(name)
    warn_user(
        f"{name} has compute capability {compute_capability // 10}.{compute_capability % 10};"
        f" {OLD_DEVICES_FAULT}"
    )
