"""What an operator sets: ``kv_connector_extra_config``, checked."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from vmm.units import parse_bytes

_KEYS = ("budget", "share", "minimum", "priority", "idle", "page")
_NAME = re.compile(r"(?!\.{1,2}$)[A-Za-z0-9._-]{1,64}")
_DURATION = re.compile(r"(\d+(?:\.\d+)?)\s*(ms|s|min|h)?")
_SECONDS = {"ms": 1e-3, "s": 1.0, "min": 60.0, "h": 3600.0, None: 1.0}


@dataclass(frozen=True)
class Settings:
    budget_bytes: int | None = None
    """The most physical memory that the KV cache of one worker may take. None: as much as vLLM would
    allocate."""
    share: str | None = None  #: the name under which engines share a device's memory
    minimum_bytes: int = 0  #: of the share
    priority: int = 0
    idle_seconds: float = 5.0
    page_bytes: int | None = None  #: None: what the device is best at


def settings_of(given: dict[str, Any]) -> Settings:
    """The settings in ``kv_connector_extra_config``. Raises ValueError, naming the key."""
    unknown = sorted(set(given) - set(_KEYS))
    if unknown:
        raise ValueError(
            f"kv_connector_extra_config: unknown key {unknown[0]!r}; VmmConnector knows {', '.join(_KEYS)}"
        )
    share = given.get("share")
    if share is not None and not (isinstance(share, str) and _NAME.fullmatch(share)):
        raise ValueError(
            f"kv_connector_extra_config: 'share' is {share!r}; expected letters, digits, '-', '_' and '.'"
        )
    for key in ("minimum", "priority"):
        if key in given and share is None:
            raise ValueError(f"kv_connector_extra_config: {key!r} is of use only together with 'share'")
    priority = given.get("priority", 0)
    if not isinstance(priority, int) or isinstance(priority, bool) or not -1000 <= priority <= 1000:
        raise ValueError(f"kv_connector_extra_config: 'priority' is {priority!r}; expected -1000 to 1000")
    budget = _size("budget", given["budget"]) if "budget" in given else None
    minimum = _size("minimum", given["minimum"]) if "minimum" in given else 0
    if budget is not None and minimum > budget:
        raise ValueError(
            f"kv_connector_extra_config: 'minimum' ({minimum} bytes) is more than 'budget' ({budget} bytes)"
        )
    page = _size("page", given["page"]) if "page" in given else None
    return Settings(budget, share, minimum, priority, _duration(given.get("idle", "5s")), page)


def _size(key: str, value: Any) -> int:
    try:
        return parse_bytes(value, key)
    except ValueError as error:
        raise ValueError(f"kv_connector_extra_config: {error}") from None


def _duration(value: Any) -> float:
    match = _DURATION.fullmatch(str(value).strip())
    if (
        match is None
        or isinstance(value, bool)
        or not 0 < (seconds := float(match[1]) * _SECONDS[match[2]]) < 1e9
    ):
        raise ValueError(
            f'kv_connector_extra_config: \'idle\' is {value!r}; expected a time such as "5s", "500ms" or 5'
        )
    return seconds
