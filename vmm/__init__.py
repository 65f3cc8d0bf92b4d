"""vmm: a virtual-memory allocator for the memory that LLM inference grows and shrinks.

Importing this package imports neither torch nor transformers; what needs them imports them when it is used.
"""

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
)
from vmm.pool import Pool, PoolStats, default_pool
from vmm.units import format_bytes, parse_bytes

__version__ = "0.1.0"

__all__ = [
    "Closed",
    "DriverError",
    "DriverOutOfMemory",
    "Error",
    "Forked",
    "InvalidArgument",
    "InvariantViolation",
    "MappingLimit",
    "OutOfPages",
    "Pool",
    "PoolStats",
    "__version__",
    "default_pool",
    "format_bytes",
    "parse_bytes",
]
