"""What a pool counts."""

from dataclasses import dataclass


@dataclass(frozen=True)
class StoreStats:
    """One tier below the device. Its places are for one page each."""

    capacity_bytes: int
    used_bytes: int  #: of places that hold a copy, or will
    quarantined_bytes: int  #: of places that failed: nobody gets them any more
    written_bytes: int
    read_bytes: int
    verified_pages: int  #: that came back, and were what had been written
    failures: int  #: of writes and reads, pages among them that were not what had been written
    read_only: bool  #: it failed to write too often


@dataclass(frozen=True)
class TierStats:
    """What a pool's parked sequences do. Counters begin at 0 when the pool is made."""

    parked_sequences: int
    dirty_pages: int  #: of these, and of what ended sequences left: not copied yet
    cleaned_pages: int  #: copied to a tier
    loaded_pages: int  #: copied back
    lost_pages: int  #: that could not be copied back: see SequenceLost
    loads: int  #: of sequences of which something was away
    loading_ms: float  #: how long these took, altogether
    waited_ms: float  #: of that, while somebody waited
    host: StoreStats | None  #: None where there is no such tier, or no KVCache has been made yet
    file: StoreStats | None

    @property
    def loads_hidden_fraction(self) -> float:
        """How much of the time that loads took nobody waited; 1.0 before the first."""
        return 1.0 - min(1.0, self.waited_ms / self.loading_ms) if self.loading_ms else 1.0


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
    tiers: TierStats | None = None  #: None where the pool has no tiers
