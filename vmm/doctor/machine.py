"""Checks of the machine and of this process's limits, as far as the host driver needs them."""

import ctypes
import os
import platform
import resource
from contextlib import ExitStack
from pathlib import Path

from vmm import _core, host_memory
from vmm.doctor.report import Facts, Finding
from vmm.errors import Error, InvalidArgument
from vmm.pool import Pool
from vmm.units import format_bytes

_MEMFD_BYTES = 2**46  # host_calls.cpp, memfd_size(): sparse, but a file size limit counts all of it
_ARENA_BYTES = 2**44  # pool.h, PoolOptions::arena_bytes: the most a pool reserves
_COMFORTABLE_MAPPINGS = 262_144  # what databases ask for too; costs nothing until used


def host_driver(facts: Facts) -> Finding:
    """Decides whether the host driver works, by using it."""
    try:
        driver = _core.HostDriver("vmm-doctor")
        facts["granularity_bytes"] = driver.granularity
        facts["default_page_bytes"] = driver.default_page_bytes
        _exercise(driver)
        # A pool reserves an arena and starts no thread here: what remains to be known of a real one.
        _core.Pool(2**20, name="vmm-doctor", pager_thread=False).close()
    except (Error, MemoryError) as error:
        advice = "lift what the limits below name, and allow memfd_create, mmap and madvise (seccomp)"
        return Finding("error", str(error), advice)
    facts["driver"] = "host"
    return Finding("ok", "works: reserved, created, mapped, written, read back, unmapped, released, freed")


def _exercise(driver: _core.HostDriver) -> None:
    """Takes two pages through every call of the contract. Raises the driver's own error, or one about the
    bytes."""
    page = driver.default_page_bytes
    with ExitStack() as undo:  # its end is the second half of the exercise
        base = driver.reserve(2 * page, page)
        undo.callback(driver.free_reservation, base, 2 * page)
        entries = []
        for at in (0, page):
            handle = driver.create(page, at)
            undo.callback(driver.release, handle)
            entries.append((base + at, handle, page))
        driver.map(entries)
        undo.callback(driver.unmap, entries)
        driver.set_access(entries)
        for number, (address, _, _) in enumerate(entries):
            ctypes.memset(address, 0xA5 + number, page)
        for number, (address, _, _) in enumerate(entries):
            if ctypes.string_at(address, page) != bytes([0xA5 + number]) * page:
                raise Error(f"page {number} did not keep the bytes written to it")


def device(facts: Facts) -> Finding:
    cores = len(os.sched_getaffinity(0))
    facts.update(device="cpu", cpu=_cpu_name(), cpu_cores=cores, system=platform.system())
    facts["kernel"] = platform.release()
    return Finding("ok", f"cpu: {_cpu_name()}, {cores} core(s); {platform.system()} {platform.release()}")


def _cpu_name() -> str:
    for line in _read("/proc/cpuinfo").splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()  # ARM's cpuinfo has no names


def pages(facts: Facts) -> Finding:
    if "granularity_bytes" not in facts:
        return Finding("error", "unknown without a driver")
    granularity, usual = facts["granularity_bytes"], facts["default_page_bytes"]
    return Finding("ok", f"granularity {format_bytes(granularity)}, default page {format_bytes(usual)}")


def mappings(facts: Facts) -> Finding:
    """How many memory mappings this process may have; every extent of a cache costs two."""
    used = _read("/proc/self/maps").count("\n")
    facts.update(max_map_count=int(_read("/proc/sys/vm/max_map_count")), mappings_used=used)
    try:
        most, name = _core.mapping_limit()
    except InvalidArgument as error:
        return Finding("error", str(error), "unset VMM_MAX_MAPPINGS, or set it to a number of mappings")
    facts["mappings_limit"] = most
    found = f"{used:,} of {most:,} used ({name.removesuffix(' (sysctl)')})"
    if used * 2 <= most:
        return Finding("ok", found)
    wanted = max(_COMFORTABLE_MAPPINGS, 4 * used)
    advice = f"unset {name}" if name == "VMM_MAX_MAPPINGS" else f"sysctl -w vm.max_map_count={wanted}"
    return Finding("warning", f"{found}, more than half", advice)


def locked_memory(facts: Facts) -> Finding:
    limit = facts["memlock_limit_bytes"] = _limit(resource.RLIMIT_MEMLOCK)
    if limit is None:
        return Finding("ok", "unlimited")
    found = f"{format_bytes(limit)}: not needed yet, pinned host memory (the swap tier, later) will be"
    return Finding("warning", found, "ulimit -l unlimited")


def file_size(facts: Facts) -> Finding:
    limit = facts["file_size_limit_bytes"] = _limit(resource.RLIMIT_FSIZE)
    if limit is None or limit >= _MEMFD_BYTES:
        return Finding("ok", "unlimited" if limit is None else format_bytes(limit))
    found = f"{format_bytes(limit)}: the host driver's memfd is sparse, and {format_bytes(_MEMFD_BYTES)} long"
    return Finding("error", found, "ulimit -f unlimited")


def address_space(facts: Facts) -> Finding:
    limit = facts["address_space_limit_bytes"] = _limit(resource.RLIMIT_AS)
    if limit is None or limit > 2 * _ARENA_BYTES:
        return Finding("ok", "unlimited" if limit is None else format_bytes(limit))
    found = f"{format_bytes(limit)}: a pool takes up to {format_bytes(_ARENA_BYTES)} of addresses"
    # Less will do, down to where no pool can be made: then this is the likely reason.
    return Finding("error" if facts["driver"] is None else "warning", found, "ulimit -v unlimited")


def _limit(which: int) -> int | None:
    """This process's soft limit in bytes, None when there is none."""
    soft = resource.getrlimit(which)[0]
    return None if soft == resource.RLIM_INFINITY else soft


def memory(facts: Facts) -> Finding:
    total, available = host_memory.machine_memory()
    facts.update(memory_total_bytes=total, memory_available_bytes=available)
    return Finding("ok", f"{format_bytes(available)} of {format_bytes(total)} available")


def cgroup(facts: Facts) -> Finding:
    limits = host_memory.cgroup_limits()
    narrowest = min(limits, key=lambda limit: limit.left_bytes, default=None)
    facts["cgroup_path"] = narrowest and narrowest.path
    facts["cgroup_limit_bytes"] = narrowest and narrowest.limit_bytes
    facts["cgroup_used_bytes"] = narrowest and narrowest.used_bytes
    if narrowest is None:
        return Finding("ok", "no memory limit")
    used, limit = format_bytes(narrowest.used_bytes), format_bytes(narrowest.limit_bytes)
    return Finding("ok", f"{used} of {limit} used ({narrowest.path})")


def budget(facts: Facts) -> Finding:
    """The budget of a pool that is given none, which such a pool is asked for."""
    text = os.environ.get("VMM_BUDGET")
    facts.update(budget_bytes=None, budget_source="default" if text is None else "VMM_BUDGET")
    try:
        with Pool(device="cpu") as pool:
            count = facts["budget_bytes"] = pool.budget_bytes
    except InvalidArgument as error:
        advice = "unset VMM_BUDGET, or set it to a size like 12GiB"
        return Finding("error", str(error), advice if "VMM_BUDGET" in str(error) else None)
    except (Error, MemoryError) as error:
        return Finding("error", f"no pool can be made: {error}")
    source = "half of what is available" if text is None else f"VMM_BUDGET={text}"
    return Finding("ok", f"{format_bytes(count)} ({source})")


def _read(path: str) -> str:
    return Path(path).read_text()
