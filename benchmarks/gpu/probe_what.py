"""Probe 1: what the device says of itself, and whether host memory can be mapped into its ranges.

For the others: the name of a CUresult, and WrongData.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from typing import Any

from conformance_bench import Bench
from cuda_calls import HOST, HOST_NUMA, READ_WRITE, SUCCESS, Access, Cuda, Location, access, properties

# CUdevice_attribute, by cuda.h 13.
ATTRIBUTES = {
    "multiprocessors": 16,
    "integrated": 18,
    "l2_bytes": 38,
    "async_engines": 40,
    "compute_capability_major": 75,
    "compute_capability_minor": 76,
    "pageable_memory_access": 88,
    "virtual_memory_management": 102,
    "posix_fd_handles": 103,
    "generic_compression": 107,
    "gpu_direct_rdma_with_vmm": 110,
    "memory_pools": 115,
    "fabric_handles": 128,
    "host_numa_id": 134,
    "host_numa_virtual_memory_management": 141,
    "host_virtual_memory_management": 145,
}
_GRANULARITIES = {"minimum": 0, "recommended": 1}


class WrongData(AssertionError):
    """The one thing that a probe must not find."""


def named(cuda: Cuda, result: int) -> str:
    """``1 CUDA_ERROR_INVALID_VALUE``."""
    name = ctypes.c_char_p()
    cuda.resolve("cuGetErrorName", 6000, [ctypes.c_int, ctypes.c_void_p])(result, ctypes.byref(name))
    return f"{result} {(name.value or b'').decode()}".strip()


def attributes(b: Bench) -> Iterator[tuple[str, Any]]:
    version = ctypes.c_int()
    b.cuda.do("cuDriverGetVersion", ctypes.byref(version))
    yield "driver_version", version.value
    for name, number in ATTRIBUTES.items():
        value = ctypes.c_int()
        result = b.cuda.cuDeviceGetAttribute(ctypes.byref(value), number, 0)
        yield name, value.value if result == SUCCESS else named(b.cuda, result)
    for kind, option in _GRANULARITIES.items():
        yield f"granularity_{kind}", _granularity(b, properties(), option)
    free, total = ctypes.c_size_t(), ctypes.c_size_t()
    b.cuda.do("cuMemGetInfo", ctypes.byref(free), ctypes.byref(total))
    yield "free_bytes", free.value
    yield "total_bytes", total.value
    largest = ctypes.c_uint64()
    for bits in (49, 48, 47, 46, 45, 44, 42, 40):
        result = b.cuda.cuMemAddressReserve(ctypes.byref(largest), 1 << bits, b.page, 0, 0)
        if result == SUCCESS:
            b.cuda.do("cuMemAddressFree", largest, 1 << bits)
            yield "largest_reservation_bits", bits
            return
    yield "largest_reservation_bits", named(b.cuda, result)


def _granularity(b: Bench, what: Any, option: int) -> int | str:
    value = ctypes.c_uint64()
    result = b.cuda.cuMemGetAllocationGranularity(ctypes.byref(value), ctypes.byref(what), option)
    return value.value if result == SUCCESS else named(b.cuda, result)


def host_location(b: Bench) -> Location:
    """The NUMA node next to the device; 0 where the driver does not say."""
    node = ctypes.c_int()
    known = b.cuda.cuDeviceGetAttribute(ctypes.byref(node), ATTRIBUTES["host_numa_id"], 0) == SUCCESS
    return Location(HOST_NUMA, max(node.value, 0) if known else 0)


def host_pages(b: Bench) -> Iterator[tuple[str, Any]]:
    yield from _from(b, Location(HOST, 0))


def host_numa_pages(b: Bench) -> Iterator[tuple[str, Any]]:
    location = host_location(b)
    yield "node", location.id
    yield from _from(b, location)


def _from(b: Bench, location: Location) -> Iterator[tuple[str, Any]]:
    """A page of host memory made, mapped, opened to the device and to the host, written and read."""
    what = properties(location=location)
    for kind, option in _GRANULARITIES.items():
        yield f"granularity_{kind}", _granularity(b, what, option)
    handle = ctypes.c_uint64()
    result = b.cuda.cuMemCreate(ctypes.byref(handle), b.page, ctypes.byref(what), 0)
    yield "create", named(b.cuda, result)
    if result != SUCCESS:
        return
    base = b.reserve(1)
    b.map(base, handle.value)
    yield (
        "access_of_the_device",
        named(b.cuda, b.cuda.cuMemSetAccess(base, b.page, ctypes.byref(access()), 1)),
    )
    own = Access(location, READ_WRITE)
    yield "access_of_the_host", named(b.cuda, b.cuda.cuMemSetAccess(base, b.page, ctypes.byref(own), 1))
    byte = ctypes.create_string_buffer(1)
    yield "memset", named(b.cuda, b.cuda.cuMemsetD8(base, 7, b.page))
    yield "copy_to_host", named(b.cuda, b.cuda.cuMemcpyDtoH(byte, base, 1))
    yield "is_what_was_set", byte.raw == b"\7"
    yield "read_by_the_cpu", ctypes.string_at(base, 1) == b"\7"  # last: it may be fatal
