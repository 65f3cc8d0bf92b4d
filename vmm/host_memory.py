"""How much memory this process could use: the machine's, and the container's limit."""

import os
from dataclasses import dataclass
from pathlib import Path

_MEMINFO = Path("/proc/meminfo")
_OWN_CGROUPS = Path("/proc/self/cgroup")
_CGROUPS = Path("/sys/fs/cgroup")
_NO_LIMIT = 2**62  # version 1 writes the largest multiple of a page where there is no limit


@dataclass(frozen=True)
class CgroupLimit:
    """The memory limit of one cgroup that holds this process, and its use, file cache included."""

    path: str
    limit_bytes: int
    used_bytes: int

    @property
    def left_bytes(self) -> int:
        return self.limit_bytes - self.used_bytes


def available_bytes() -> int:
    """The bytes that could be used without swapping: MemAvailable, or less where cgroups leave less."""
    _, available = machine_memory()
    return max(0, min([available, *(limit.left_bytes for limit in cgroup_limits())]))


def machine_memory() -> tuple[int, int]:
    """The total and the available bytes of the machine, whatever cgroups allow."""
    kilobytes = {}
    for line in _MEMINFO.read_text().splitlines():
        name, _, value = line.partition(":")
        kilobytes[name] = value.split()[0]
    total = int(os.sysconf("SC_PHYS_PAGES")) * int(os.sysconf("SC_PAGE_SIZE"))
    if "MemTotal" in kilobytes:
        total = int(kilobytes["MemTotal"]) * 1024
    return total, int(kilobytes["MemAvailable"]) * 1024 if "MemAvailable" in kilobytes else total


def cgroup_limits() -> list[CgroupLimit]:
    """The limits on this process, under version 2 or 1: its own cgroup's and those of the ones around it,
    which bind too. Empty where there is none."""
    own = _own_cgroups()
    hierarchies = [
        (_CGROUPS, own.get("", "/"), "memory.max", "memory.current"),
        (_CGROUPS / "memory", own.get("memory", "/"), "memory.limit_in_bytes", "memory.usage_in_bytes"),
    ]
    found = []
    for root, path, limit_name, used_name in hierarchies:
        # A container sees its own cgroup as the root, but may be told the host's path: what is not there
        # is passed over.
        inner = Path(path.lstrip("/"))
        for folder in (inner, *inner.parents):
            limit = _limit(root / folder, limit_name, used_name)
            if limit is not None:
                found.append(limit)
    return found


def _limit(folder: Path, limit_name: str, used_name: str) -> CgroupLimit | None:
    try:
        limit = int((folder / limit_name).read_text())  # "max" is no number, and no limit
        used = int((folder / used_name).read_text())
    except (OSError, ValueError):
        return None
    return CgroupLimit(str(folder), limit, used) if limit < _NO_LIMIT else None


def _own_cgroups() -> dict[str, str]:
    """The process's path in each hierarchy by controller; version 2's controller is ""."""
    try:
        lines = _OWN_CGROUPS.read_text().splitlines()
    except OSError:
        return {}
    paths = {}
    for line in lines:
        _, controllers, path = line.split(":", 2)
        for controller in controllers.split(","):
            paths[controller] = path
    return paths
