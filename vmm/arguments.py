"""Checks of what callers pass; each error names the argument and says what was expected."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeGuard

from vmm.errors import InvalidArgument

if TYPE_CHECKING:
    from vmm.pool import Pool


def checked_number(argument: str, value: Any, least: int, most: int) -> int:
    """``value``, which must be an integer from ``least`` to ``most`` and no bool. Raises InvalidArgument."""
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
        raise InvalidArgument(f"{argument} is {value!r}; expected {least} to {most}")
    return value


def is_number(value: Any) -> TypeGuard[int | float]:
    """Whether it is an int or a float, and no bool."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def checked_page_bytes(page_bytes: Any, granularity_bytes: int) -> int:
    """``page_bytes``, which must be a power of two, at least the driver's granularity and less than 2^40.
    Raises InvalidArgument."""
    is_power_of_two = isinstance(page_bytes, int) and page_bytes > 0 and page_bytes & (page_bytes - 1) == 0
    if not is_power_of_two or not granularity_bytes <= page_bytes < 2**40:
        raise InvalidArgument(
            f"page_bytes is {page_bytes!r}; expected a power of two of at least {granularity_bytes} and less"
            " than 2^40"
        )
    return int(page_bytes)


def chosen_page_bytes(page_bytes: Any, pool: Pool) -> int:
    """The page size for memory of ``pool``: ``page_bytes`` if the driver has it, or the driver's best where
    that is None. Raises InvalidArgument."""
    if page_bytes is None:
        return pool.default_page_bytes
    return checked_page_bytes(page_bytes, pool._core.granularity)
