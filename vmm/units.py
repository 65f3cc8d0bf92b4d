"""Sizes as people write them."""

import re

from vmm.errors import InvalidArgument

_DECIMAL = {"": 1, "b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "tb": 10**12}
_UNITS = _DECIMAL | {"kib": 2**10, "mib": 2**20, "gib": 2**30, "tib": 2**40}
_SIZE = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([a-zA-Z]*)\s*")
_MOST = 2**62


def parse_bytes(size: int | str, argument: str = "size") -> int:
    """Bytes in ``size``: a positive integer, or text such as ``"12GiB"`` (2**30) or ``"12 GB"`` (10**9).

    Raises InvalidArgument, naming ``argument``, for anything else and for sizes of 2**62 bytes and more.
    """
    if isinstance(size, bool) or not isinstance(size, int | str):
        raise InvalidArgument(f"{argument} is {size!r}; expected an integer of bytes or text like '12GiB'")
    if isinstance(size, str):
        match = _SIZE.fullmatch(size)
        if match is None or match[2].lower() not in _UNITS:
            raise InvalidArgument(
                f"{argument} is {size!r}; expected a number and a unit, like '12GiB' or '12 GB'"
            )
        count = round(float(match[1]) * _UNITS[match[2].lower()])
    else:
        count = size
    if not 0 < count < _MOST:
        raise InvalidArgument(f"{argument} is {size!r}; expected more than 0 and less than 2**62 bytes")
    return count


def rounded_up(count: int, unit: int) -> int:
    """The least multiple of ``unit`` that is at least ``count``."""
    return -(-count // unit) * unit


def format_bytes(count: float) -> str:
    """``count`` bytes for people, in binary units: ``"1.5 GiB"``."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(count) < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"
