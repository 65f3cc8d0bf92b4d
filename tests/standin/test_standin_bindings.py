"""NVIDIA's own Python package on the stand-in: a caller that shares no line with us."""

import ctypes

import conformance
import pytest

pytest.importorskip("cuda.bindings.driver", exc_type=ImportError)


@pytest.fixture
def driver(standin):
    # Imported after the stand-in is loaded: by its soname it is libcuda from then on.
    from cuda.bindings import driver as module

    return module


def value(result):
    code, *rest = result
    assert code == 0, code
    return rest[0] if len(rest) == 1 else rest


@pytest.fixture
def second(standin):
    """The calls of the conformance scenarios, made through cuda-bindings."""
    from bindings_calls import BindingsCuda

    return BindingsCuda(standin.library)


@pytest.fixture
def context(driver):
    value(driver.cuInit(0))
    device = value(driver.cuDeviceGet(0))
    context = value(driver.cuDevicePrimaryCtxRetain(device))
    value(driver.cuCtxSetCurrent(context))
    yield context
    value(driver.cuCtxSynchronize())
    value(driver.cuDevicePrimaryCtxRelease(device))
    value(driver.cuCtxSetCurrent(driver.CUcontext(0)))


def test_what_a_device_is(driver, context):
    device = value(driver.cuDeviceGet(1))
    attribute = driver.CUdevice_attribute
    assert value(driver.cuDriverGetVersion()) == 13000
    assert value(driver.cuDeviceGetCount()) == 2
    assert value(driver.cuDeviceGetName(32, device)).rstrip(b" \0") == b"vmm stand-in"
    assert value(driver.cuDeviceTotalMem(device)) == 1 << 30
    assert value(driver.cuDeviceGetUuid(device)).bytes != value(driver.cuDeviceGetUuid(0)).bytes
    for name, expected in (
        ("VIRTUAL_MEMORY_MANAGEMENT_SUPPORTED", 1),
        ("COMPUTE_CAPABILITY_MAJOR", 9),
        ("HANDLE_TYPE_FABRIC_SUPPORTED", 0),
    ):
        asked = getattr(attribute, f"CU_DEVICE_ATTRIBUTE_{name}")
        assert value(driver.cuDeviceGetAttribute(asked, device)) == expected
    error = driver.CUresult.CUDA_ERROR_OUT_OF_MEMORY
    assert value(driver.cuGetErrorName(error)) == b"CUDA_ERROR_OUT_OF_MEMORY"
    assert value(driver.cuGetErrorString(error)) == b"out of memory"


def test_the_life_of_a_page(standin, driver, context):
    what = driver.CUmemAllocationProp()
    what.type = driver.CUmemAllocationType.CU_MEM_ALLOCATION_TYPE_PINNED
    what.location.type = driver.CUmemLocationType.CU_MEM_LOCATION_TYPE_DEVICE
    least = driver.CUmemAllocationGranularity_flags.CU_MEM_ALLOC_GRANULARITY_MINIMUM
    page = value(driver.cuMemGetAllocationGranularity(what, least))
    base = value(driver.cuMemAddressReserve(4 * page, page, 0, 0))
    handle = value(driver.cuMemCreate(page, what, 0))
    value(driver.cuMemMap(base, page, 0, handle, 0))
    allowed = driver.CUmemAccessDesc()
    allowed.location = what.location
    allowed.flags = driver.CUmemAccess_flags.CU_MEM_ACCESS_FLAGS_PROT_READWRITE
    value(driver.cuMemSetAccess(base, page, [allowed], 1))
    assert value(driver.cuMemGetAllocationPropertiesFromHandle(handle)).location.id == 0
    assert driver.cuMemMap(base, page, 0, handle, 0)[0] == driver.CUresult.CUDA_ERROR_INVALID_VALUE

    stream = value(driver.cuStreamCreate(driver.CUstream_flags.CU_STREAM_NON_BLOCKING))
    event = value(driver.cuEventCreate(driver.CUevent_flags.CU_EVENT_DISABLE_TIMING))
    value(driver.cuMemsetD8Async(base, 7, page, stream))
    value(driver.cuEventRecord(event, stream))
    while driver.cuEventQuery(event)[0] == driver.CUresult.CUDA_ERROR_NOT_READY:
        pass
    there = bytearray(8)
    value(driver.cuMemcpyDtoH(there, base, 8))
    assert there == b"\7" * 8

    attribute = driver.CUpointer_attribute.CU_POINTER_ATTRIBUTE_RANGE_SIZE
    assert value(driver.cuPointerGetAttribute(attribute, base)) == 4 * page
    assert value(driver.cuMemGetAddressRange(base))[1] == page
    value(driver.cuMemUnmap(base, page))
    value(driver.cuMemRelease(handle))
    value(driver.cuMemAddressFree(base, 4 * page))
    value(driver.cuEventDestroy(event))
    value(driver.cuStreamDestroy(stream))
    assert not standin.leaks()


def test_copies_and_times(driver, context):
    memory = value(driver.cuMemAlloc(4096))
    source, target = ctypes.create_string_buffer(b"x" * 64), ctypes.create_string_buffer(64)
    start, end = value(driver.cuEventCreate(0)), value(driver.cuEventCreate(0))
    stream = value(driver.cuStreamCreate(0))
    value(driver.cuEventRecord(start, stream))
    value(driver.cuMemcpyHtoDAsync(memory, ctypes.addressof(source), 64, stream))
    value(driver.cuMemcpyDtoHAsync(ctypes.addressof(target), memory, 64, stream))
    value(driver.cuEventRecord(end, stream))
    value(driver.cuEventSynchronize(end))
    assert target.raw == b"x" * 64
    assert value(driver.cuEventElapsedTime(start, end)) >= 0
    for event in (start, end):
        value(driver.cuEventDestroy(event))
    value(driver.cuStreamDestroy(stream))
    value(driver.cuMemFree(memory))


def test_a_capture(driver, context):
    stream = value(driver.cuStreamCreate(1))
    value(driver.cuStreamBeginCapture(stream, driver.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_GLOBAL))
    assert driver.cuCtxSynchronize()[0] == driver.CUresult.CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED
    invalidated = driver.CUresult.CUDA_ERROR_STREAM_CAPTURE_INVALIDATED
    assert driver.cuStreamEndCapture(stream)[0] == invalidated
    value(driver.cuStreamDestroy(stream))


# Calls that pass NULL for what cuda-bindings provides itself.
BY_CTYPES = {
    "reserve_refuses_bad_arguments": {"cuMemAddressReserve"},
    "granularity_refuses_bad_arguments": {"cuMemGetAllocationGranularity"},
    "can_access_peer_refuses_bad_arguments": {"cuDeviceCanAccessPeer"},
    "set_access_refuses_bad_arguments": {"cuMemSetAccess"},
}


@pytest.mark.parametrize("name", conformance.SCENARIOS)
def test_conformance_of_a_second_caller(second, name):
    steps = conformance.run(second, name)
    assert steps
    assert not [step for step in steps if not step.ok]
    assert second.by_ctypes == BY_CTYPES.get(name, set())
