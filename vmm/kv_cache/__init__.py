"""What a serving engine embeds: slots in which sequences grow, in memory that is mapped before it is
needed."""

from vmm.kv_cache.cache import Batch, CacheStats, KVCache, Sequence

__all__ = ["Batch", "CacheStats", "KVCache", "Sequence"]
