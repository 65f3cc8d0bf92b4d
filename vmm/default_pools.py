"""The pools that caches and tensors share when none is named, and which pool each of them uses."""

import os
import threading

from vmm import devices
from vmm.budgets import changed_budget_bytes, future_budget_bytes
from vmm.errors import InvalidArgument
from vmm.pool import Pool

_pools: dict[str, Pool] = {}  # by device
_budgets: dict[str, int | str | None] = {}  # by device
_lock = threading.Lock()


def configure(*, budget: int | str | None = None, device: object = "cpu") -> None:
    """Sets the budget of a device's default pool: now, if there is one, and of those to come. ``None`` is
    ``VMM_BUDGET``, else half of the available memory. Safe from any thread. Raises InvalidArgument for a
    budget as a Pool would, or a device that is none; DriverError where a GPU cannot be asked for its free
    memory; Forked for one in a child of a process that used CUDA. Then nothing has changed."""
    name, ordinal = devices.parsed_device(device)
    with _lock:
        pool = _pools.get(name)
        if pool is not None and not pool._core.in_child and not pool.closed:
            pool._core.budget.set_limit(changed_budget_bytes(budget, pool._core, ordinal))
        else:
            future_budget_bytes(budget, ordinal)
        _budgets[name] = budget


def default_pool(device: object = "cpu") -> Pool:
    """The pool that a device's caches and tensors share when none is named: see ``configure``. Made on first
    use; remade after ``close`` or a fork. Safe from any thread. Raises what making a Pool with the configured
    budget, else ``VMM_BUDGET``, does: InvalidArgument, DriverError, Forked."""
    name, _ = devices.parsed_device(device)
    with _lock:
        pool = _pools.get(name)
        if pool is None or pool._core.in_child or pool.closed:
            pool = _pools[name] = Pool(_budgets.get(name), device=name)
        return pool


def chosen_pool(pool: object, budget: int | str | None = None, device: object = None) -> Pool:
    """The pool of a cache or tensor that was given these arguments: ``pool``, or a new one with ``budget``,
    or the default one of ``device`` (None: the CPU). Raises InvalidArgument for a pool beside a budget, or on
    another device than is named; otherwise what making a Pool raises."""
    if pool is None:
        device = "cpu" if device is None else device
        return default_pool(device) if budget is None else Pool(budget, device=device)
    if budget is not None:
        raise InvalidArgument("budget and pool: expected at most one of them")
    if not isinstance(pool, Pool):
        raise InvalidArgument(f"pool is {pool!r}; expected a vmm.Pool")
    if device is not None and (name := devices.parsed_device(device)[0]) != pool.device:
        raise InvalidArgument(f"device is {name}; the pool is on {pool.device}")
    return pool


def _after_fork() -> None:
    global _lock  # noqa: PLW0603
    _lock = threading.Lock()  # a thread of the parent may have held the old one


os.register_at_fork(after_in_child=_after_fork)
