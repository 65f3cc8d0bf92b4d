"""The sizes of one KVCache, and what became of prompts that it looked up."""

from __future__ import annotations

from dataclasses import dataclass

from vmm.records import LayoutName


@dataclass(frozen=True)
class CacheStats:
    """One cache at one moment. Its pool has stats of its own: ``cache.pool.stats()``."""

    sequences: int  #: open
    live_bytes: int  #: of the K and V of tokens in open sequences, as far as windows reach
    running_bytes: int  #: of the pages that open sequences need, or will soon
    mapped_bytes: int  #: live, the rest of their pages, what was mapped ahead, and what closed ones left
    horizon: int  #: how many iterations ahead the pager is now asked for pages
    prompt_tokens: int  #: that were looked for when sequences were opened with ``tokens``
    cached_tokens: int  #: of these, that were found
    adopted: int  #: sequences that began in the slot that had the tokens
    aliased: int  #: in whose slot the pages were mapped a second time
    copied: int  #: in whose slot they were copied
    restored: int  #: and which were parked at once, because the tokens were in a tier
    cached_sequences: int  #: closed ones whose tokens may still be found
    layout: LayoutName
    bookkeeping_bytes: int  #: of ordinary memory, for each sequence that there can be
