"""How much memory this process could use: the machine's, and the container's limit."""

import os
from pathlib import Path


def available_bytes() -> int:
    """Bytes that could be used without swapping: MemAvailable, and what the cgroup leaves of its limit."""
    candidates = [_mem_available(), *_cgroup_left()]
    return max(0, min(candidates))


def _mem_available() -> int:
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return int(os.sysconf("SC_PHYS_PAGES")) * int(os.sysconf("SC_PAGE_SIZE"))


def _cgroup_left() -> list[int]:
    """What the process's own cgroup leaves, under version 2 or 1; nothing where there is no limit."""
    roots = [
        (Path("/sys/fs/cgroup") / _own_cgroup().lstrip("/"), "memory.max", "memory.current"),
        (Path("/sys/fs/cgroup"), "memory.max", "memory.current"),
        (Path("/sys/fs/cgroup/memory"), "memory.limit_in_bytes", "memory.usage_in_bytes"),
    ]
    left = []
    for root, limit_name, used_name in roots:
        try:
            limit = (root / limit_name).read_text().strip()
            used = int((root / used_name).read_text())
        except (OSError, ValueError):
            continue
        if limit != "max":
            left.append(int(limit) - used)
    return left


def _own_cgroup() -> str:
    try:
        lines = Path("/proc/self/cgroup").read_text().splitlines()
    except OSError:
        return ""
    return next((line[3:] for line in lines if line.startswith("0::")), "")
