"""KVCache, for serving engines: slots in which sequences grow, in memory that is mapped before it is
needed."""

from vmm.kv_cache.cache import KVCache
from vmm.kv_cache.cache_stats import CacheStats
from vmm.kv_cache.saving import SaveReport
from vmm.kv_cache.sequence import Batch, Sequence

__all__ = ["Batch", "CacheStats", "KVCache", "SaveReport", "Sequence"]
