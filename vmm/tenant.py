"""Tenants: who owns what a pool holds, what each is guaranteed, and what each may have at most."""

from __future__ import annotations

import re
from dataclasses import dataclass

from vmm import _core
from vmm.arguments import checked_number
from vmm.closing import Closing
from vmm.default_pools import chosen_pool
from vmm.errors import Closed, InvalidArgument
from vmm.pool import Pool
from vmm.units import format_bytes, parse_bytes

_NAME = re.compile(r"[A-Za-z0-9._-]{1,64}")
_PRIORITIES = 1000
_NO_LIMIT = 2**62


@dataclass(frozen=True)
class TenantStats:
    """One tenant at one moment. All but ``name`` and ``priority`` are bytes."""

    name: str
    priority: int
    guaranteed_bytes: int  #: it gets so much, whatever others hold
    limit_bytes: int | None  #: it is never charged more; None: there is no limit
    charged_bytes: int  #: kept, or in use by work that is not over
    kept_bytes: int
    held_bytes: int  #: all its physical memory, also what others may take
    borrowed_bytes: int  #: of what it holds, what is beyond its guarantee: others get it back first
    room_bytes: int  #: how much more it may be charged now


class Tenant(Closing):
    """An owner of memory in ``pool`` (default: the ``device``'s default pool). A KVCache, a VmmCache, a
    KVTensor or a range belongs to one, all its life, if it is made with ``tenant=``; so do a cache's
    sequences. What is made without belongs to nobody, which is a tenant without name, guarantee and limit.

    A tenant is *charged* for what it keeps, and for what nobody may take yet because work that is not over
    uses it. It gets ``guaranteed`` (bytes, or text like ``"4GiB"``), whatever others hold, as soon as work
    that uses their memory lets go. Above that it borrows what no other is guaranteed, up to ``limit``. What
    is borrowed is taken back first: of what is needed least, that of the lowest ``priority``. Never is
    anything taken that is kept; so what a tenant borrows and keeps, others cannot have, but what they are
    guaranteed they find. Where a tenant may not have more, it gets OutOfPages, whose ``tenant`` has its
    figures.

    No tenant sees another's bytes: a page is zeroed when it passes from one to another.

    Guarantees hold among the tenants of one pool. With a share, promise no more than the pool's ``minimum``:
    beyond that, other processes may have the memory.

    ``close``, or the end of the last reference to the tenant, ends the guarantee. What was made with the
    tenant keeps a reference to it, and after ``close`` goes on as its own; but nothing new is made with it.

    Raises InvalidArgument for a name other than 1 to 64 letters, digits, dots, ``_`` or ``-``, or one that
    another tenant of the pool has; for sizes that do not parse, guarantees that together exceed the pool's
    budget, a limit below what is guaranteed, a priority other than −1,000 to 1,000, and more than 64
    tenants; OutOfPages where others keep what is to be guaranteed; Closed and Forked. Every method is safe
    from any thread.
    """

    def __init__(
        self,
        name: str,
        guaranteed: int | str = 0,
        limit: int | str | None = None,
        priority: int = 0,
        *,
        pool: Pool | None = None,
        device: object = None,
    ) -> None:
        if not isinstance(name, str) or not _NAME.fullmatch(name):
            raise InvalidArgument(f"name is {name!r}; expected 1 to 64 letters, digits, dots, '_' or '-'")
        checked_number("priority", priority, -_PRIORITIES, _PRIORITIES)
        is_none = guaranteed == 0 and not isinstance(guaranteed, bool)
        guaranteed_bytes = 0 if is_none else parse_bytes(guaranteed, "guaranteed")
        limit_bytes = _NO_LIMIT if limit is None else parse_bytes(limit, "limit")
        if limit_bytes < guaranteed_bytes:
            raise InvalidArgument(
                f"limit is {format_bytes(limit_bytes)}; expected at least what is guaranteed,"
                f" {format_bytes(guaranteed_bytes)}"
            )
        self.pool = chosen_pool(pool, device=device)
        self.name, self.priority = name, priority
        self.guaranteed_bytes = guaranteed_bytes
        self.limit_bytes = None if limit is None else limit_bytes
        self._core = _core.Tenant(
            self.pool._core,
            name=name,
            guaranteed_bytes=guaranteed_bytes,
            limit_bytes=limit_bytes,
            priority=priority,
        )

    @property
    def closed(self) -> bool:
        """Whether ``close`` was called."""
        return self._core.closed

    def stats(self) -> TenantStats:
        """A snapshot of its figures. Raises Closed and Forked."""
        figures = self._core.figures()
        return TenantStats(
            name=self.name,
            priority=self.priority,
            limit_bytes=self.limit_bytes,
            borrowed_bytes=max(0, figures["held_bytes"] - figures["guaranteed_bytes"]),
            **figures,
        )

    def close(self) -> None:
        """Ends the guarantee. Nothing is taken from what the tenant's caches and tensors keep. A second call
        does nothing."""
        self._core.close()

    def __repr__(self) -> str:
        state = "closed" if self.closed else f"guaranteed {format_bytes(self.guaranteed_bytes)}"
        return f"<vmm.Tenant {self.name!r}, {state}>"


def pool_for(tenant: object, pool: object, budget: int | str | None = None, device: object = None) -> Pool:
    """The pool of a cache or tensor that was given these arguments: that of ``tenant``, else what
    `chosen_pool` says. Raises InvalidArgument for what is no tenant, one of another pool, and one beside a
    budget; Closed for a closed one; otherwise what `chosen_pool` does."""
    if tenant is None:
        return chosen_pool(pool, budget, device)
    if not isinstance(tenant, Tenant):
        raise InvalidArgument(f"tenant is {tenant!r}; expected a vmm.Tenant")
    if budget is not None:
        raise InvalidArgument("budget and tenant: expected at most one of them, a tenant's pool has a budget")
    if pool is not None and pool is not tenant.pool:
        raise InvalidArgument(f"tenant is {tenant.name!r}, of another pool; expected one of {pool!r}")
    if tenant.closed:
        raise Closed(f"tenant {tenant.name!r} is closed")
    return chosen_pool(tenant.pool, device=device)


def owner_id(tenant: Tenant | None) -> int:
    """By which the engine knows the owner."""
    return 0 if tenant is None else tenant._core.id
