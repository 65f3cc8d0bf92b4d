"""The allocators that a replay compares."""

from __future__ import annotations

from collections.abc import Callable

from vmm import _core
from vmm.simulate.gpus import ZERO_COST, CallTimes
from vmm.simulate.settings import Settings

BLOCK_TOKENS = 16  # of vLLM's paged blocks
PAGE_BYTES = 2**21  # of vAttention's, one for K and one for V of each layer
CACHED_TOKENS = 1024
MOST_ADDRESSES_BYTES = 2**46
_CALLS = ("reserve", "create", "map", "set_access", "unmap", "release", "event")  # in the core's order


def _vmm(settings: Settings, times: CallTimes, **options: int) -> _core.KvMemory:
    return _core.VmmMemory(
        budget=settings.kv_bytes,
        places=settings.max_sequences,
        max_tokens=settings.max_tokens,
        page_bytes=settings.page_bytes,
        records_bytes=settings.records_bytes,
        call_times_ns=[round(1000 * getattr(times, f"{call}_us")) for call in _CALLS],
        wake_ns=round(1000 * times.wake_us),
        first_tokens=min(settings.batch_tokens, settings.max_tokens) if settings.first_tokens_known else 0,
        warm=settings.warm_bytes,
        copied_bytes_per_s=settings.gpu.bandwidth_bytes_per_s / 2,  # each byte is read and written
        **options,
    )


def _vmm_prefix(settings: Settings) -> _core.KvMemory:
    """Like vmm, and prompts find what others have computed. What nobody uses is not given back to the system
    after a while (Pool(idle_seconds=None)): a paged allocator never gives it back either."""
    return _vmm(settings, settings.call_times, cached=_cached_sequences(settings), idle_ns=0)


def _counting(
    settings: Settings, tokens_per_unit: int, unit_bytes: int, map_us: float = 0, create_us: float = 0
) -> _core.KvMemory:
    return _core.CountingMemory(
        capacity=settings.kv_bytes,
        places=settings.max_sequences,
        record_bytes=settings.model.kv_bytes_per_token,
        tokens_per_unit=tokens_per_unit,
        unit_bytes=unit_bytes,
        map_unit_ns=round(1000 * map_us),
        create_unit_ns=round(1000 * create_us),
    )


def _static(settings: Settings) -> _core.KvMemory:
    """Gives each sequence memory for the longest one from the start."""
    tokens = settings.max_tokens
    return _counting(settings, tokens, tokens * settings.model.kv_bytes_per_token)


def _paged(settings: Settings) -> _core.KvMemory:
    """Hands out blocks of a few tokens, which are all there from the start; block tables cost nothing."""
    return _counting(settings, BLOCK_TOKENS, BLOCK_TOKENS * settings.model.kv_bytes_per_token)


def _per_layer(settings: Settings) -> _core.KvMemory:
    """Keeps K and V of each layer in pages of their own, which the caller maps when it needs them; unmapping
    costs nothing."""
    model, times = settings.model, settings.call_times
    pages = 2 * model.layers
    tokens = PAGE_BYTES // (model.kv_bytes_per_token // pages)
    return _counting(
        settings,
        tokens,
        pages * PAGE_BYTES,
        map_us=pages * (times.map_us + times.set_access_us),
        create_us=pages * times.create_us,
    )


def _cached_sequences(settings: Settings) -> int:
    """How many slots are left for sequences that have ended, whose tokens others begin with. Enough that
    memory runs out first where they have 1,024 tokens or more on average; but all slots have at most half of
    a process's addresses."""
    slot_bytes = settings.max_tokens * settings.model.kv_bytes_per_token
    by_memory = settings.kv_bytes // (CACHED_TOKENS * settings.model.kv_bytes_per_token)
    return max(min(by_memory, MOST_ADDRESSES_BYTES // slot_bytes - settings.max_sequences), 0)


def _block_cache(settings: Settings) -> _core.KvMemory:
    """Like paged16, and prompts find the blocks that others have computed; the least recently used go first.
    vLLM's prefix cache does the same."""
    return _core.BlockCacheMemory(
        capacity=settings.kv_bytes,
        places=settings.max_sequences,
        record_bytes=settings.model.kv_bytes_per_token,
        block_tokens=BLOCK_TOKENS,
    )


ALLOCATORS: dict[str, Callable[[Settings], _core.KvMemory]] = {
    "vmm": lambda settings: _vmm(settings, settings.call_times),
    "vmm-zero-cost": lambda settings: _vmm(settings, ZERO_COST),
    "paged16": _paged,
    "per-layer-sync": _per_layer,
    "static": _static,
}

#: Those with which requests begin with what others have computed, where the trace has hash ids.
SHARING_PREFIXES: dict[str, Callable[[Settings], _core.KvMemory]] = {
    "vmm-prefix": _vmm_prefix,
    "paged16-prefix": _block_cache,
}
