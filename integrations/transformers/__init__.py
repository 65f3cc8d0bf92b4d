"""A Transformers cache that grows in place: ``generate(..., past_key_values=VmmCache(model.config))``."""

from vmm.integrations.transformers.cache import CacheStats, VmmCache

__all__ = ["CacheStats", "VmmCache"]
