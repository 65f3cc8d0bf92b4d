"""Scenarios: contexts, copies, streams and events."""

import ctypes

from conformance_bench import NO_DEVICE_THERE, out, scenario
from cuda_calls import INVALID_CONTEXT, INVALID_DEVICE, INVALID_VALUE, NOT_READY, SUCCESS, access


@scenario
def some_calls_want_a_context(b):
    stream, event = b.stream(), b.event()
    b.cuda.do("cuCtxSetCurrent", None)
    b.expect(INVALID_CONTEXT, "cuMemAlloc", out(), 4096)
    b.expect(INVALID_CONTEXT, "cuStreamCreate", out(), 0)
    b.expect(INVALID_CONTEXT, "cuEventCreate", out(), 0)
    b.expect(INVALID_CONTEXT, "cuMemGetInfo", out(), out())
    b.expect(INVALID_CONTEXT, "cuCtxSynchronize")
    b.expect(INVALID_CONTEXT, "cuStreamSynchronize", None)
    b.expect(INVALID_CONTEXT, "cuCtxPopCurrent", out())
    b.expect(SUCCESS, "cuEventQuery", event)
    b.expect(SUCCESS, "cuStreamSynchronize", stream)


@scenario
def mapping_wants_no_context(b):
    b.cuda.do("cuCtxSetCurrent", None)
    base = b.reserve(1)
    b.map(base, b.create())
    b.expect(SUCCESS, "cuMemSetAccess", base, b.page, ctypes.byref(access()), 1)


@scenario
def devices_that_are_not_there(b):
    b.expect(INVALID_DEVICE, "cuDeviceGet", out(ctypes.c_int), NO_DEVICE_THERE)
    b.expect(INVALID_DEVICE, "cuDevicePrimaryCtxRetain", out(), NO_DEVICE_THERE)
    b.expect(INVALID_DEVICE, "cuDeviceGetAttribute", out(ctypes.c_int), 102, NO_DEVICE_THERE)


@scenario
def copies_refuse_memory_without_access(b):
    base = b.reserve(2)
    b.map(base, b.create())
    byte = ctypes.create_string_buffer(1)
    b.expect(INVALID_VALUE, "cuMemcpyDtoH", byte, base + b.page, 1)  # unmapped
    b.expect(INVALID_VALUE, "cuMemsetD8", base + b.page, 1, 1)


@scenario
def bad_flags_and_versions(b):
    b.expect(INVALID_VALUE, "cuStreamCreate", out(), 0x80)
    b.expect(INVALID_VALUE, "cuEventCreate", out(), 0x80)
    b.expect(INVALID_VALUE, "cuInit", 1)
    b.expect(INVALID_VALUE, "cuMemHostAlloc", out(), 4096, 0x80)
    b.expect(INVALID_VALUE, "get", b"cuMemMap", out(), 99990, 0, None)


@scenario
def an_event_never_recorded_is_over(b):
    event = b.event()
    b.expect(SUCCESS, "cuEventQuery", event)
    b.expect(SUCCESS, "cuEventSynchronize", event)
    b.expect(SUCCESS, "cuStreamWaitEvent", b.stream(), event, 0)


@scenario
def an_event_tells_when_work_is_over(b):
    stream, event = b.stream(), b.event()
    base = b.reserve(1)
    b.map(base, b.create())
    b.allow(base)
    b.expect(SUCCESS, "cuMemsetD8Async", base, 3, b.page, stream)
    b.expect(SUCCESS, "cuEventRecord", event, stream)
    b.expect((SUCCESS, NOT_READY), "cuEventQuery", event)
    b.expect(SUCCESS, "cuEventSynchronize", event)
    b.expect(SUCCESS, "cuEventQuery", event)
    b.expect(SUCCESS, "cuStreamQuery", stream)


@scenario
def an_event_of_a_context_tells_when_all_its_streams_are_over(b):
    streams, event = [b.stream(), b.stream()], b.event()
    base = b.reserve(2)
    for i, stream in enumerate(streams):
        b.map(base + i * b.page, b.create())
        b.allow(base + i * b.page)
        b.expect(SUCCESS, "cuMemsetD8Async", base + i * b.page, 3, b.page, stream)
    b.expect(SUCCESS, "cuCtxRecordEvent", b.context, event)
    b.expect((SUCCESS, NOT_READY), "cuEventQuery", event)
    b.expect(SUCCESS, "cuEventSynchronize", event)
    for stream in streams:
        b.expect(SUCCESS, "cuStreamQuery", stream)
