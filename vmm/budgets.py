"""Budgets: what was asked for, in bytes, and not more than there is."""

import os
from collections.abc import Callable

from vmm import _core
from vmm.errors import InvalidArgument
from vmm.host_memory import available_bytes
from vmm.units import format_bytes, parse_bytes

_DEFAULT_FRACTION = 0.5  # of available memory: the rest is for weights, activations and everybody else


def new_budget_bytes(budget: int | str | None, context: _core.CudaContext | None, of_others: int = 0) -> int:
    """The budget of a pool that is being made, on the GPU of ``context`` or on the CPU. Raises
    InvalidArgument for a budget that does not parse or is more than is free. ``of_others`` is what other
    processes of its share have: that counts as free."""
    free_bytes = context.free_bytes if context else available_bytes
    return _budget_bytes(budget, lambda: free_bytes() + of_others)


def future_budget_bytes(budget: int | str | None, ordinal: int) -> int:
    """The budget of a pool that may be made later. Raises as `new_budget_bytes` does."""
    return _budget_bytes(budget, lambda: _free_bytes(ordinal))


def changed_budget_bytes(budget: int | str | None, core: _core.Pool, ordinal: int, of_others: int = 0) -> int:
    """A new budget for a pool that exists: it may keep what it has, though nothing is free, and may always
    have less. Raises as `new_budget_bytes` does."""

    def reachable_bytes() -> int:
        free = available_bytes() if ordinal < 0 else core.device_free_bytes()
        return free + core.budget.taken_bytes + of_others

    return _budget_bytes(budget, reachable_bytes, always=core.budget.limit_bytes)


def _free_bytes(ordinal: int) -> int:
    return available_bytes() if ordinal < 0 else _core.cuda_free_bytes(ordinal)


def _budget_bytes(budget: int | str | None, available_now: Callable[[], int], *, always: int = 0) -> int:
    """``budget``, or ``VMM_BUDGET``, or a part of what is available. Up to ``always`` bytes are never too
    many, and then nobody is asked for what is available."""
    argument = "budget"
    if budget is None:
        budget = os.environ.get("VMM_BUDGET")
        argument = "VMM_BUDGET"
    if budget is None:
        return max(2**20, int(available_now() * _DEFAULT_FRACTION))
    count = parse_bytes(budget, argument)
    if count > always and count > (available := available_now()):
        raise InvalidArgument(
            f"{argument} is {format_bytes(count)}; expected at most {format_bytes(available)},"
            " the memory available now"
        )
    return count
