"""Scenarios: reservations, physical memory, mappings."""

import ctypes

from conformance_bench import NO_DEVICE_THERE, out, scenario
from cuda_calls import (
    DEVICE,
    HOST,
    HOST_NUMA_CURRENT,
    INVALID_DEVICE,
    INVALID_VALUE,
    POSIX_FD,
    SUCCESS,
    Access,
    Location,
    Properties,
    access,
    properties,
)

# Reservations


@scenario
def reserve_refuses_bad_arguments(b):
    for size, alignment, hint, flags in (
        (0, b.page, 0, 0),
        (b.page + 1, b.page, 0, 0),
        (b.page, 3 * b.page, 0, 0),
        (b.page, b.page, 1, 0),
        (b.page, b.page, 0, 1),
    ):
        b.expect(INVALID_VALUE, "cuMemAddressReserve", out(), size, alignment, hint, flags)
    b.expect(INVALID_VALUE, "cuMemAddressReserve", None, b.page, b.page, 0, 0)


@scenario
def reserve_gives_what_alignment_asks_for(b):
    alignment = 64 * b.page
    b.note("aligned base", holds=b.reserve(2, alignment) % alignment == 0)
    b.note("aligned base, no wish", holds=b.reserve(2, 0) % 65536 == 0)


@scenario
def address_free_wants_the_exact_range(b):
    base, size = b.reserve(4), 4 * b.page
    b.expect(INVALID_VALUE, "cuMemAddressFree", base, size - b.page)
    b.expect(INVALID_VALUE, "cuMemAddressFree", base + b.page, size - b.page)
    b.expect(SUCCESS, "cuMemAddressFree", base, size)
    b.done("cuMemAddressFree", base, size)
    b.expect(INVALID_VALUE, "cuMemAddressFree", base, size)


@scenario
def address_free_wants_nothing_mapped(b):
    base = b.reserve(4)
    b.map(base + b.page, b.create())
    b.expect(INVALID_VALUE, "cuMemAddressFree", base, 4 * b.page)


# Memory


@scenario
def create_refuses_bad_arguments(b):
    good = ctypes.byref(properties())
    for size, what, flags in (
        (0, good, 0),
        (b.page + 4096, good, 0),
        (b.page, good, 1),
        (b.page, None, 0),
        (b.page, ctypes.byref(properties(type=0)), 0),
        (b.page, ctypes.byref(properties(location=Location(0, 0))), 0),
    ):
        b.expect(INVALID_VALUE, "cuMemCreate", out(), size, what, flags)


@scenario
def create_refuses_bad_locations(b):
    def create(expected, what: Properties):
        b.expect(expected, "cuMemCreate", out(), b.page, ctypes.byref(what), 0)

    create(INVALID_DEVICE, properties(NO_DEVICE_THERE))
    create(INVALID_VALUE, properties(location=Location(HOST_NUMA_CURRENT, 0)))
    create(INVALID_VALUE, properties(location=Location(HOST, 0), handle_types=POSIX_FD))


@scenario
def granularity_refuses_bad_arguments(b):
    b.expect(INVALID_VALUE, "cuMemGetAllocationGranularity", None, ctypes.byref(properties()), 0)
    b.expect(INVALID_VALUE, "cuMemGetAllocationGranularity", out(), None, 0)
    b.expect(INVALID_VALUE, "cuMemGetAllocationGranularity", out(), ctypes.byref(properties()), 7)
    there = ctypes.byref(properties(NO_DEVICE_THERE))
    b.expect(INVALID_DEVICE, "cuMemGetAllocationGranularity", out(), there, 0)


@scenario
def release_while_mapped_keeps_the_memory(b):
    base = b.reserve(1)
    handle = b.create()
    b.map(base, handle)
    b.allow(base)
    b.cuda.do("cuMemsetD8", base, 7, b.page)
    b.expect(SUCCESS, "cuMemRelease", handle)
    b.done("cuMemRelease", handle)
    byte = ctypes.create_string_buffer(1)
    b.expect(SUCCESS, "cuMemcpyDtoH", byte, base, 1)
    b.note("the byte", holds=byte.raw == b"\7")


@scenario
def retain_gives_the_same_handle_from_any_address(b):
    base = b.reserve(2)
    handle = b.create()
    b.map(base, handle)
    for offset in (0, 1, b.page - 1):
        same = ctypes.c_uint64()
        b.expect(SUCCESS, "cuMemRetainAllocationHandle", ctypes.byref(same), base + offset)
        b.note("same handle", holds=same.value == handle)
        b.expect(SUCCESS, "cuMemRelease", same.value)
    b.expect(INVALID_VALUE, "cuMemRetainAllocationHandle", out(), base + b.page)


@scenario
def can_access_peer_refuses_bad_arguments(b):
    b.expect(INVALID_VALUE, "cuDeviceCanAccessPeer", None, 0, 0)
    for device, peer in ((0, NO_DEVICE_THERE), (NO_DEVICE_THERE, 0), (-1, 0)):
        b.expect(INVALID_DEVICE, "cuDeviceCanAccessPeer", out(ctypes.c_int), device, peer)
    b.expect(SUCCESS, "cuDeviceCanAccessPeer", out(ctypes.c_int), 0, 0)


# Mapping


@scenario
def map_refuses_bad_arguments(b):
    base, handle = b.reserve(4), b.create(2)
    for address, size, offset, flags in (
        (base, 2 * b.page, 0, 1),  # flags
        (base, b.page, b.page, 0),  # offset
        (base, b.page, 0, 0),  # less than the handle
        (base, 3 * b.page, 0, 0),  # more
        (base + 4096, 2 * b.page, 0, 0),
        (base, 2 * b.page - 4096, 0, 0),
        (base, 0, 0, 0),
        (base + 3 * b.page, 2 * b.page, 0, 0),  # past the reservation's end
    ):
        b.expect(INVALID_VALUE, "cuMemMap", address, size, offset, handle, flags)


@scenario
def map_wants_a_reservation(b):
    base, handle = b.reserve(1), b.create()
    b.cuda.do("cuMemAddressFree", base, b.page)
    b.done("cuMemAddressFree", base, b.page)
    b.expect(INVALID_VALUE, "cuMemMap", base, b.page, 0, handle, 0)


@scenario
def map_replaces_nothing(b):
    base, first, second = b.reserve(4), b.create(), b.create(2)
    b.map(base + b.page, first)
    b.expect(INVALID_VALUE, "cuMemMap", base + b.page, b.page, 0, first, 0)
    b.expect(INVALID_VALUE, "cuMemMap", base, 2 * b.page, 0, second, 0)


@scenario
def one_handle_at_many_addresses(b):
    base, handle = b.reserve(2), b.create()
    b.map(base, handle)
    b.map(base + b.page, handle)
    b.allow(base, 2)
    b.cuda.do("cuMemsetD8", base, 9, b.page)
    byte = ctypes.create_string_buffer(1)
    b.expect(SUCCESS, "cuMemcpyDtoH", byte, base + b.page, 1)
    b.note("the alias shows it", holds=byte.raw == b"\x09")


@scenario
def unmap_takes_whole_mappings(b):
    base, pair = b.reserve(4), b.create(2)
    b.map(base, pair, 2)
    b.expect(INVALID_VALUE, "cuMemUnmap", base, b.page)
    b.expect(INVALID_VALUE, "cuMemUnmap", base + b.page, b.page)
    b.expect(INVALID_VALUE, "cuMemUnmap", base, 0)
    b.expect(SUCCESS, "cuMemUnmap", base, 2 * b.page)
    b.done("cuMemUnmap", base, 2 * b.page)


@scenario
def unmap_takes_several_but_no_holes(b):
    base, handle = b.reserve(4), b.create()
    for at in (0, 1, 3):
        b.map(base + at * b.page, handle)
    b.expect(INVALID_VALUE, "cuMemUnmap", base, 4 * b.page)
    b.expect(INVALID_VALUE, "cuMemUnmap", base + 2 * b.page, b.page)
    b.expect(INVALID_VALUE, "cuMemUnmap", base, 3 * b.page)
    b.expect(SUCCESS, "cuMemUnmap", base, 2 * b.page)
    for at in (0, 1):
        b.done("cuMemUnmap", base + at * b.page, b.page)


@scenario
def set_access_refuses_bad_arguments(b):
    base = b.reserve(2)
    b.map(base, b.create())
    good = access()
    b.expect(INVALID_VALUE, "cuMemSetAccess", base, b.page, ctypes.byref(good), 0)
    b.expect(INVALID_VALUE, "cuMemSetAccess", base, b.page, None, 1)
    b.expect(INVALID_VALUE, "cuMemSetAccess", base, 2 * b.page, ctypes.byref(good), 1)  # half unmapped
    b.expect(INVALID_VALUE, "cuMemSetAccess", base + b.page, b.page, ctypes.byref(good), 1)
    there = ctypes.byref(access(NO_DEVICE_THERE))
    b.expect(INVALID_DEVICE, "cuMemSetAccess", base, b.page, there, 1)
    b.expect(INVALID_VALUE, "cuMemSetAccess", base, b.page, ctypes.byref(access(flags=2)), 1)
    host = ctypes.byref(Access(Location(3, 0), 3))
    b.expect(INVALID_VALUE, "cuMemSetAccess", base, b.page, host, 1)  # of the host, to a device's page


@scenario
def set_access_takes_whole_mappings(b):
    base, pair = b.reserve(2), b.create(2)
    b.map(base, pair, 2)
    b.expect(INVALID_VALUE, "cuMemSetAccess", base, b.page, ctypes.byref(access()), 1)
    b.expect(INVALID_VALUE, "cuMemSetAccess", base + b.page, b.page, ctypes.byref(access()), 1)


@scenario
def set_access_spans_handles(b):
    base = b.reserve(3)
    for at in range(3):
        b.map(base + at * b.page, b.create())
    b.expect(SUCCESS, "cuMemSetAccess", base, 3 * b.page, ctypes.byref(access()), 1)
    flags = ctypes.c_uint64()
    where = ctypes.byref(Location(DEVICE, 0))
    b.expect(SUCCESS, "cuMemGetAccess", ctypes.byref(flags), where, base + 2 * b.page)
    b.note("read and write", holds=flags.value == 3)


@scenario
def access_ends_with_the_mapping(b):
    base, handle = b.reserve(1), b.create()
    b.map(base, handle)
    b.allow(base)
    b.expect(SUCCESS, "cuMemUnmap", base, b.page)
    b.done("cuMemUnmap", base, b.page)
    b.map(base, handle)
    flags = ctypes.c_uint64(9)
    b.expect(SUCCESS, "cuMemGetAccess", ctypes.byref(flags), ctypes.byref(Location(DEVICE, 0)), base)
    b.note("none", holds=flags.value == 0)


@scenario
def get_access_wants_a_mapping(b):
    base = b.reserve(1)
    b.expect(INVALID_VALUE, "cuMemGetAccess", out(), ctypes.byref(Location(DEVICE, 0)), base)


@scenario
def ranges_and_mappings_are_told_apart(b):
    base = b.reserve(4)
    b.map(base + b.page, b.create())
    start, size = ctypes.c_uint64(), ctypes.c_uint64()
    address = base + b.page + 5
    b.expect(SUCCESS, "cuPointerGetAttribute", ctypes.byref(start), 11, address)
    b.expect(SUCCESS, "cuPointerGetAttribute", ctypes.byref(size), 12, address)
    b.note("the reservation", holds=(start.value, size.value) == (base, 4 * b.page))
    b.expect(SUCCESS, "cuMemGetAddressRange", ctypes.byref(start), ctypes.byref(size), address)
    b.note("the mapping", holds=(start.value, size.value) == (base + b.page, b.page))
