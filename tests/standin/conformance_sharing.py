"""Scenarios: physical memory that is exported and imported."""

import ctypes

from conformance_bench import scenario
from cuda_calls import INVALID_VALUE, POSIX_FD, SUCCESS


@scenario
def export_wants_the_handle_type_from_create(b):
    fd = ctypes.c_int(-1)
    b.expect(INVALID_VALUE, "cuMemExportToShareableHandle", ctypes.byref(fd), b.create(), POSIX_FD, 0)
    handle = b.create(handle_types=POSIX_FD)
    b.expect(SUCCESS, "cuMemExportToShareableHandle", ctypes.byref(fd), handle, POSIX_FD, 0)
    imported = ctypes.c_uint64()
    b.expect(SUCCESS, "cuMemImportFromShareableHandle", ctypes.byref(imported), fd.value, POSIX_FD)
    ctypes.CDLL(None).close(fd)
    b.expect(SUCCESS, "cuMemRelease", imported.value)


@scenario
def an_import_is_the_same_memory_and_outlives_what_it_came_from(b):
    base, handle = b.reserve(2), b.create(handle_types=POSIX_FD)
    b.map(base, handle)
    b.allow(base)
    b.cuda.do("cuMemsetD8", base, 5, b.page)
    b.cuda.do("cuCtxSynchronize")
    fd, imported = ctypes.c_int(-1), ctypes.c_uint64()
    b.expect(SUCCESS, "cuMemExportToShareableHandle", ctypes.byref(fd), handle, POSIX_FD, 0)
    b.expect(SUCCESS, "cuMemImportFromShareableHandle", ctypes.byref(imported), fd.value, POSIX_FD)
    ctypes.CDLL(None).close(fd)
    b.map(base + b.page, imported.value)
    b.expect(SUCCESS, "cuMemRelease", imported.value)
    b.allow(base + b.page)
    b.cuda.do("cuMemUnmap", base, b.page)
    b.done("cuMemUnmap", base, b.page)
    b.cuda.do("cuMemRelease", handle)
    b.done("cuMemRelease", handle)
    byte = ctypes.create_string_buffer(1)
    b.expect(SUCCESS, "cuMemcpyDtoH", byte, base + b.page, 1)
    b.note("the byte", holds=byte.raw == b"\5")
