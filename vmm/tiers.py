"""Tiers below the device: what a pool is asked for, and what it says of them."""

from __future__ import annotations

import os
from typing import Any

from vmm.arguments import checked_number, is_number
from vmm.errors import InvalidArgument
from vmm.pool_stats import StoreStats, TierStats
from vmm.units import parse_bytes


def checked_host(host: int | str | None) -> int:
    """The bytes of a tier in the host's memory; 0 for none."""
    return 0 if host is None else parse_bytes(host, "host")


def checked_for_tier(argument: str, value: Any, tier_bytes: int) -> bool:
    """A flag for a tier, which must be there."""
    if not isinstance(value, bool):
        raise InvalidArgument(f"{argument} is {value!r}; expected True or False")
    if value and tier_bytes == 0:
        tier = "host=" if argument == "verify_host" else "host= or nvme="
        raise InvalidArgument(f"{argument} is True; expected a tier, too: {tier}")
    return value


def checked_nvme(nvme: Any) -> tuple[str, int]:
    """The directory, and the bytes, of a tier in a file: ``"/mnt/nvme/vmm:500GiB"``. None is no tier."""
    if nvme is None:
        return "", 0
    directory, colon, size = nvme.rpartition(":") if isinstance(nvme, str) else ("", "", "")
    if not colon or not directory:
        raise InvalidArgument(f"nvme is {nvme!r}; expected a directory and a size, as '/mnt/nvme/vmm:500GiB'")
    if not os.path.isdir(directory) or not os.access(directory, os.W_OK):
        raise InvalidArgument(f"nvme is {nvme!r}; expected a directory that can be written to")
    return directory, parse_bytes(size, "nvme")


def checked_hint(category: Any, priority: Any, idle_s: Any) -> tuple[str, int, int]:
    """What is told of a sequence that is parked, the seconds as nanoseconds."""
    if not isinstance(category, str):
        raise InvalidArgument(f"category is {category!r}; expected text")
    checked_number("priority", priority, -1000, 1000)
    if idle_s is not None and (not is_number(idle_s) or not 0 <= idle_s <= 1e9):
        raise InvalidArgument(f"idle_s is {idle_s!r}; expected seconds, 0 to 1e9, or None")
    return category, priority, 0 if idle_s is None else max(1, int(idle_s * 1e9))


def checked_by_s(by_s: Any) -> float:
    """In how many seconds something is wanted."""
    seconds = 0.0 if by_s is None else by_s
    if not is_number(seconds) or not 0 <= seconds <= 1e9:
        raise InvalidArgument(f"by_s is {by_s!r}; expected seconds, 0 to 1e9, or None")
    return float(seconds)


def seconds(nanoseconds: int | None) -> float | None:
    """What the engine guesses, for a user."""
    return None if nanoseconds is None else nanoseconds / 1e9


def tier_stats(core: dict[str, Any] | None) -> TierStats | None:
    """What the engine says of the tiers."""
    if core is None:
        return None
    page_bytes = core["page_bytes"]
    return TierStats(
        parked_sequences=core["parked_sequences"],
        dirty_pages=core["dirty_pages"],
        cleaned_pages=core["cleaned_pages"],
        loaded_pages=core["loaded_pages"],
        lost_pages=core["lost_pages"],
        loads=core["loads"],
        loading_ms=core["loading_ns"] / 1e6,
        waited_ms=core["waited_ns"] / 1e6,
        host=_store_stats(core.get("host"), page_bytes),
        file=_store_stats(core.get("file"), page_bytes),
    )


def _store_stats(store: dict[str, Any] | None, page_bytes: int) -> StoreStats | None:
    if store is None:
        return None
    unused = store["free"] + store["quarantined"]
    return StoreStats(
        capacity_bytes=store["slots"] * page_bytes,
        used_bytes=(store["slots"] - unused) * page_bytes,
        quarantined_bytes=store["quarantined"] * page_bytes,
        written_bytes=store["written_bytes"],
        read_bytes=store["read_bytes"],
        verified_pages=store["verified"],
        failures=store["write_failures"] + store["read_failures"] + store["corrupt"] + store["timed_out"],
        read_only=store["read_only"],
    )
