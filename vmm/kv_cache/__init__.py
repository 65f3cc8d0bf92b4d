"""KVCache, for serving engines: slots in which sequences grow, in memory that is mapped before it is
needed."""

from vmm.kv_cache.cache import CacheStats, KVCache
from vmm.kv_cache.sequence import Batch, Sequence

__all__ = ["Batch", "CacheStats", "KVCache", "Sequence"]
