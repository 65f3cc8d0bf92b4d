"""What VmmConnector costs vLLM's scheduler: ``allocate_slots`` of 256 decoding requests, one token each.

Stock's KVCacheManager and ours take turns step by step in one process; the thread's CPU time counts. No engine
and no model; our memory is real, mapped and confirmed by a worker's threads as in an engine.
"""

from __future__ import annotations

import statistics
from time import sleep, thread_time
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from vmm.benchmarks.step_peer import _check, _manager, _prefilled

if TYPE_CHECKING:
    from vllm.v1.core.kv_cache_manager import KVCacheManager
    from vllm.v1.request import Request

SEQUENCES, STEPS, WARM_UP_STEPS = 256, 400, 40
