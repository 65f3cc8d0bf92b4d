"""What a pool counts."""

from dataclasses import dataclass


@dataclass(frozen=True)
class PoolStats:
    """A pool at one moment. Counters begin at 0 when the pool is made."""

    budget_bytes: int
    granted_bytes: int  #: of that, what the share allows it now; all of it without a share
    wanted_bytes: int  #: as what it wants to have it as its grant; 0 when it has enough, or no share
    pressure_bytes: int  #: of what this process's pools hold, what others of the share ask for
    created_bytes: int  #: physical memory taken from the budget: mapped or free
    peak_created_bytes: int
    free_bytes: int  #: created, but mapped nowhere
    mapped_bytes: int
    saved_bytes: int  #: by sequences that share pages: a page counts once in all the others
    kept_bytes: int  #: mapped and needed
    reclaimable_bytes: int  #: mapped, but needed by nobody: look-ahead, and what finished caches left mapped
    reservations_leased: int
    reservations_idle: int
    retirements_waiting: int
    runs: int
    stalls: int  #: how often a caller waited because the pager was not ahead
    stall_ms: float  #: how long callers have waited so, altogether
    pages_mapped_ahead: int  #: by the pager
    pages_mapped_waiting: int  #: while a caller waited
    pages_created: int
    pages_released: int
    pages_unmapped: int
    pages_zeroed: int
    reservations_adopted: int  #: recycled whole, still mapped
    reservations_made: int
    driver_failures: int
