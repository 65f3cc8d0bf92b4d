"""Shares: budgets that several processes have together, and who has how much of them."""

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from vmm import _core
from vmm.arguments import checked_number
from vmm.errors import Error, InvalidArgument
from vmm.units import format_bytes, parse_bytes

_PREFIX = "vmm-share-"
_NAME = re.compile(r"[A-Za-z0-9._-]{1,64}")
_PRIORITIES = 1000


@dataclass(frozen=True)
class Lease:
    """What one process has of a share, at one moment. All but the first three and ``priority`` are bytes."""

    share: str
    pid: int
    command: str
    minimum: int  #: is promised to it, whatever the others do
    maximum: int  #: its own budget
    priority: int
    grant: int  #: what it may use now; only it lowers this
    wanted: int  #: as what it wants to have it as its grant, or 0
    asked: int  #: of its grant, what the others ask it to give back


def leases(name: str | None = None) -> list[Lease]:
    """Who has how much of the share ``name``, or of all shares of this machine's that this user may read.

    Changes nothing, and dead processes are not in it. A share that nobody is in has no leases. Raises
    InvalidArgument for a name that is none, and for a file that is no share's or is damaged; DriverError
    where it cannot be read. Without a name such files are passed over. Safe from any thread, in forked
    children too; takes microseconds, during which other processes wait for the file.
    """
    if name is not None:
        return _leases_of(checked_share(name))
    found = []
    for each in _names():
        try:
            found += _leases_of(each)
        except Error:  # another user's, say
            continue
    return found


def checked_share(name: object) -> str:
    """The name of a share. Raises InvalidArgument for anything else."""
    if not isinstance(name, str) or not _NAME.fullmatch(name) or name in {".", ".."}:
        raise InvalidArgument(f"share is {name!r}; expected 1 to 64 letters, digits, dots, '_' or '-'")
    return name


def checked_terms(share: object, minimum: int | str, priority: int) -> tuple[str | None, int]:
    """The share's name, and the minimum in bytes. Raises InvalidArgument for what is neither, and for a
    minimum or priority without a share."""
    checked_number("priority", priority, -_PRIORITIES, _PRIORITIES)
    is_none = minimum == 0 and not isinstance(minimum, bool)
    minimum_bytes = 0 if is_none else parse_bytes(minimum, "minimum")
    if share is None:
        for argument, value in (("minimum", minimum_bytes), ("priority", priority)):
            if value:
                raise InvalidArgument(f"{argument} is {value!r} without a share; expected share='a name'")
        return None, 0
    return checked_share(share), minimum_bytes


def joined(share: str, budget_bytes: int, minimum_bytes: int, priority: int) -> _core.SharedBudget:
    """This process's part of the share. Raises InvalidArgument for a minimum that is more than the budget or,
    with the others' minima, than the largest; for another version's file, and where 64 processes are in it;
    DriverError where the file cannot be used."""
    if minimum_bytes > budget_bytes:
        raise InvalidArgument(
            f"minimum is {format_bytes(minimum_bytes)}; expected at most {format_bytes(budget_bytes)},"
            " the budget"
        )
    return _core.SharedBudget(str(_path(share)), budget_bytes, minimum_bytes, priority)


def bytes_of_others(share: str | None) -> int:
    """What other processes have of the share: it is not free, but this process may come to have it."""
    if share is None:
        return 0
    try:
        return sum(lease.grant for lease in _leases_of(share) if lease.pid != os.getpid())
    except Error:  # joining says what is wrong
        return 0


def _path(share: str) -> Path:
    return Path(os.environ.get("VMM_SHARE_DIR") or "/dev/shm") / f"{_PREFIX}{share}"


def _names() -> Iterator[str]:
    for path in sorted(_path("").parent.glob(f"{_PREFIX}*")):
        name = path.name.removeprefix(_PREFIX)
        if _NAME.fullmatch(name):
            yield name


def _leases_of(share: str) -> list[Lease]:
    path = _path(share)
    if not path.exists():
        return []
    return [
        Lease(share, pid, command, minimum, maximum, priority, grant, wanted, asked)
        for pid, _, command, minimum, maximum, priority, grant, wanted, asked in _core.look_at_share(
            str(path)
        )
    ]
