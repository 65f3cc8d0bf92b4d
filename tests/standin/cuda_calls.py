"""The CUDA driver through ctypes, for tests: any libcuda, the stand-in or a real one.

Results are returned, never raised, except by ``do``.
"""

import ctypes

SUCCESS = 0
INVALID_VALUE = 1
OUT_OF_MEMORY = 2
NOT_INITIALIZED = 3
INVALID_DEVICE = 101
INVALID_CONTEXT = 201
INVALID_HANDLE = 400
ILLEGAL_STATE = 401
NOT_FOUND = 500
NOT_READY = 600
NOT_PERMITTED = 800
CAPTURE_UNSUPPORTED = 900
CAPTURE_INVALIDATED = 901
CAPTURE_UNJOINED = 904
CAPTURE_ISOLATION = 905
CAPTURE_IMPLICIT = 906
CAPTURED_EVENT = 907
CAPTURE_WRONG_THREAD = 908

DEVICE, HOST, HOST_NUMA, HOST_NUMA_CURRENT = 1, 2, 3, 4
POSIX_FD = 1
READ_WRITE = 3
NON_BLOCKING = 1
GLOBAL, THREAD_LOCAL, RELAXED = 0, 1, 2


class Location(ctypes.Structure):
    _fields_ = (("type", ctypes.c_int), ("id", ctypes.c_int))


class Properties(ctypes.Structure):
    _fields_ = (
        ("type", ctypes.c_int),
        ("handle_types", ctypes.c_int),
        ("location", Location),
        ("win32", ctypes.c_void_p),
        ("flags", ctypes.c_ubyte * 8),
    )


class Access(ctypes.Structure):
    _fields_ = (("location", Location), ("flags", ctypes.c_int))


_INT, _SIZE, _U64, _U32, _PTR = ctypes.c_int, ctypes.c_size_t, ctypes.c_uint64, ctypes.c_uint, ctypes.c_void_p

# name: (the version whose signature this is, argument types)
_CALLS = {
    "cuInit": (2000, [_U32]),
    "cuDriverGetVersion": (2020, [_PTR]),
    "cuDeviceGet": (2000, [_PTR, _INT]),
    "cuDeviceGetCount": (2000, [_PTR]),
    "cuDeviceGetName": (2000, [_PTR, _INT, _INT]),
    "cuDeviceGetAttribute": (2000, [_PTR, _INT, _INT]),
    "cuDeviceCanAccessPeer": (4000, [_PTR, _INT, _INT]),
    "cuDevicePrimaryCtxRetain": (7000, [_PTR, _INT]),
    "cuDevicePrimaryCtxRelease": (11000, [_INT]),
    "cuDevicePrimaryCtxGetState": (7000, [_INT, _PTR, _PTR]),
    "cuCtxGetCurrent": (4000, [_PTR]),
    "cuCtxSetCurrent": (4000, [_PTR]),
    "cuCtxPushCurrent": (4000, [_PTR]),
    "cuCtxPopCurrent": (4000, [_PTR]),
    "cuCtxGetDevice": (2000, [_PTR]),
    "cuCtxSynchronize": (2000, []),
    "cuCtxRecordEvent": (12050, [_PTR, _PTR]),
    "cuMemGetAllocationGranularity": (10020, [_PTR, _PTR, _INT]),
    "cuMemAddressReserve": (10020, [_PTR, _SIZE, _SIZE, _U64, _U64]),
    "cuMemAddressFree": (10020, [_U64, _SIZE]),
    "cuMemCreate": (10020, [_PTR, _SIZE, _PTR, _U64]),
    "cuMemRelease": (10020, [_U64]),
    "cuMemMap": (10020, [_U64, _SIZE, _SIZE, _U64, _U64]),
    "cuMemUnmap": (10020, [_U64, _SIZE]),
    "cuMemSetAccess": (10020, [_U64, _SIZE, _PTR, _SIZE]),
    "cuMemGetAccess": (10020, [_PTR, _PTR, _U64]),
    "cuMemRetainAllocationHandle": (11000, [_PTR, _PTR]),
    "cuMemGetAllocationPropertiesFromHandle": (10020, [_PTR, _U64]),
    "cuMemExportToShareableHandle": (10020, [_PTR, _U64, _INT, _U64]),
    "cuMemImportFromShareableHandle": (10020, [_PTR, _PTR, _INT]),
    "cuMemGetInfo": (3020, [_PTR, _PTR]),
    "cuMemAlloc": (3020, [_PTR, _SIZE]),
    "cuMemFree": (3020, [_U64]),
    "cuMemHostAlloc": (2020, [_PTR, _SIZE, _U32]),
    "cuMemFreeHost": (2000, [_PTR]),
    "cuMemHostRegister": (6050, [_PTR, _SIZE, _U32]),
    "cuMemHostUnregister": (4000, [_PTR]),
    "cuMemGetAddressRange": (3020, [_PTR, _PTR, _U64]),
    "cuPointerGetAttribute": (4000, [_PTR, _INT, _U64]),
    "cuMemcpyHtoD": (3020, [_U64, _PTR, _SIZE]),
    "cuMemcpyDtoH": (3020, [_PTR, _U64, _SIZE]),
    "cuMemcpyDtoD": (3020, [_U64, _U64, _SIZE]),
    "cuMemcpyHtoDAsync": (3020, [_U64, _PTR, _SIZE, _PTR]),
    "cuMemcpyDtoHAsync": (3020, [_PTR, _U64, _SIZE, _PTR]),
    "cuMemcpyAsync": (4000, [_U64, _U64, _SIZE, _PTR]),
    "cuMemsetD8": (3020, [_U64, ctypes.c_ubyte, _SIZE]),
    "cuMemsetD8Async": (3020, [_U64, ctypes.c_ubyte, _SIZE, _PTR]),
    "cuMemsetD32Async": (3020, [_U64, _U32, _SIZE, _PTR]),
    "cuLaunchHostFunc": (10000, [_PTR, _PTR, _PTR]),
    "cuStreamCreate": (2000, [_PTR, _U32]),
    "cuStreamDestroy": (4000, [_PTR]),
    "cuStreamSynchronize": (2000, [_PTR]),
    "cuStreamQuery": (2000, [_PTR]),
    "cuStreamWaitEvent": (3020, [_PTR, _PTR, _U32]),
    "cuStreamGetCtx": (9020, [_PTR, _PTR]),
    "cuStreamIsCapturing": (10000, [_PTR, _PTR]),
    "cuStreamBeginCapture": (10010, [_PTR, _INT]),
    "cuStreamEndCapture": (10000, [_PTR, _PTR]),
    "cuThreadExchangeStreamCaptureMode": (10010, [_PTR]),
    "cuGraphInstantiateWithFlags": (11040, [_PTR, _PTR, _U64]),
    "cuGraphLaunch": (10000, [_PTR, _PTR]),
    "cuGraphExecDestroy": (10000, [_PTR]),
    "cuGraphDestroy": (10000, [_PTR]),
    "cuEventCreate": (2000, [_PTR, _U32]),
    "cuEventDestroy": (4000, [_PTR]),
    "cuEventRecord": (2000, [_PTR, _PTR]),
    "cuEventQuery": (2000, [_PTR]),
    "cuEventSynchronize": (2000, [_PTR]),
    "cuEventElapsedTime": (2000, [_PTR, _PTR, _PTR]),
}


class Cuda:
    """``cuda.cuMemMap(...)`` returns the CUresult; ``cuda.do("cuMemMap", ...)`` insists on success."""

    def __init__(self, library: ctypes.CDLL, flags: int = 0) -> None:
        self.library = library
        self.get = library.cuGetProcAddress_v2
        self.get.argtypes = [ctypes.c_char_p, _PTR, _INT, _U64, _PTR]
        for name, (version, arguments) in _CALLS.items():
            setattr(self, name, self.resolve(name, version, arguments, flags))

    def resolve(self, name: str, version: int, arguments: list, flags: int = 0):
        address = _PTR()
        result = self.get(name.encode(), ctypes.byref(address), version, flags, None)
        if result != SUCCESS or not address.value:
            raise LookupError(f"{name} of {version}: {result}")
        return ctypes.CFUNCTYPE(_INT, *arguments)(address.value)

    def do(self, name: str, *arguments) -> None:
        result = getattr(self, name)(*arguments)
        assert result == SUCCESS, f"{name}{arguments}: CUresult {result}"

    def get_number(self, name: str, *arguments, kind=_U64) -> int:
        """For calls whose first argument is where the answer goes."""
        out = kind()
        self.do(name, ctypes.byref(out), *arguments)
        return out.value or 0


def properties(device: int = 0, **other) -> Properties:
    location = other.pop("location", None) or Location(DEVICE, device)
    return Properties(type=other.pop("type", 1), location=location, **other)


def access(device: int = 0, flags: int = READ_WRITE) -> Access:
    return Access(Location(DEVICE, device), flags)
