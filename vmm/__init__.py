"""vmm: a virtual-memory allocator for the memory that LLM inference grows and shrinks.

Importing this package imports neither torch nor transformers: the parts that need them import them when used.
"""

import importlib
from typing import TYPE_CHECKING, Any

from vmm.default_pools import configure, default_pool
from vmm.errors import (
    Closed,
    DriverError,
    DriverOutOfMemory,
    Error,
    Forked,
    InvalidArgument,
    InvariantViolation,
    MappingLimit,
    OutOfPages,
    SequenceLost,
    TenantFigures,
)
from vmm.pool import Pool
from vmm.pool_stats import PoolStats, TierStats
from vmm.range import Blocks, Range
from vmm.shares import Lease, leases
from vmm.sharing import ExportedPage
from vmm.stream import Stream
from vmm.tenant import Tenant, TenantStats
from vmm.units import format_bytes, parse_bytes

if TYPE_CHECKING:
    from vmm.doctor import verify_installation
    from vmm.kv_cache import KVCache
    from vmm.kv_tensor import KVTensor

__version__ = "0.1.0"

__all__ = [
    "Blocks",
    "Closed",
    "DriverError",
    "DriverOutOfMemory",
    "Error",
    "ExportedPage",
    "Forked",
    "InvalidArgument",
    "InvariantViolation",
    "KVCache",
    "KVTensor",
    "Lease",
    "MappingLimit",
    "OutOfPages",
    "Pool",
    "PoolStats",
    "Range",
    "SequenceLost",
    "Stream",
    "Tenant",
    "TenantFigures",
    "TenantStats",
    "TierStats",
    "__version__",
    "configure",
    "default_pool",
    "format_bytes",
    "leases",
    "parse_bytes",
    "verify_installation",
]


# These import torch or are rarely wanted, so they are imported when they are used.
_ELSEWHERE = {"KVCache": "vmm.kv_cache", "KVTensor": "vmm.kv_tensor", "verify_installation": "vmm.doctor"}


def __getattr__(name: str) -> Any:
    if name not in _ELSEWHERE:
        raise AttributeError(f"module 'vmm' has no attribute {name!r}")
    found = getattr(importlib.import_module(_ELSEWHERE[name]), name)
    globals()[name] = found
    return found
