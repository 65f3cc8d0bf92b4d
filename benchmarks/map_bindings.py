"""The CUDA driver through cuda-bindings, NVIDIA's own package: a caller that shares no line with our core."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from vmm.benchmarks.map_pages import insist
from vmm.errors import DriverError, DriverOutOfMemory

Entries = Sequence[tuple[int, int, int]]  # (address, page, page bytes)


class Bindings:
    """The calls of vmm._core.Driver that ``Pages`` makes, on device ``ordinal``, and a few more.

    Raises ModuleNotFoundError where cuda-bindings is not installed, and DriverError, or DriverOutOfMemory,
    with the name of CUDA's error. Sizes are bytes.
    """

    def __init__(self, ordinal: int) -> None:
        # Imported here because the package is optional.
        from cuda.bindings import driver

        self._cuda, self._ordinal = driver, ordinal

    def __enter__(self) -> Bindings:
        cuda = self._cuda
        self._call("cuInit", 0)
        self._device = self._call("cuDeviceGet", self._ordinal)
        self._context = self._call("cuDevicePrimaryCtxRetain", self._device)
        self._what = cuda.CUmemAllocationProp()
        self._what.type = cuda.CUmemAllocationType.CU_MEM_ALLOCATION_TYPE_PINNED
        self._what.location.type = cuda.CUmemLocationType.CU_MEM_LOCATION_TYPE_DEVICE
        self._what.location.id = self._ordinal
        allowed = cuda.CUmemAccessDesc()
        allowed.location = self._what.location
        allowed.flags = cuda.CUmemAccess_flags.CU_MEM_ACCESS_FLAGS_PROT_READWRITE
        self._allowed = [allowed]
        return self

    def __exit__(self, *_: object) -> None:
        insist(self._call, "cuDevicePrimaryCtxRelease", self._device)

    def _call(self, name: str, *arguments: Any) -> Any:
        """What the call answers, or None."""
        result, *answer = getattr(self._cuda, name)(*arguments)
        if result == self._cuda.CUresult.CUDA_ERROR_OUT_OF_MEMORY:
            raise DriverOutOfMemory(f"{name} through cuda-bindings: {result.name}")
        if result != self._cuda.CUresult.CUDA_SUCCESS:
            raise DriverError(f"{name} through cuda-bindings: {result.name}")
        return answer[0] if answer else None

    def reserve(self, size: int, alignment: int) -> int:
        return int(self._call("cuMemAddressReserve", size, alignment, 0, 0))

    def free_reservation(self, base: int, size: int) -> None:
        self._call("cuMemAddressFree", base, size)

    def create(self, page_bytes: int, _place: int) -> int:
        return int(self._call("cuMemCreate", page_bytes, self._what, 0))

    def release(self, page: int) -> None:
        self._call("cuMemRelease", page)

    def map(self, pages: Entries) -> None:
        for address, page, page_bytes in pages:
            self._call("cuMemMap", address, page_bytes, 0, page, 0)

    def set_access(self, pages: Entries) -> None:
        for address, _, page_bytes in pages:
            self._call("cuMemSetAccess", address, page_bytes, self._allowed, 1)

    def unmap(self, pages: Entries) -> None:
        for address, _, page_bytes in pages:
            self._call("cuMemUnmap", address, page_bytes)

    def synchronize(self) -> None:
        self._call("cuCtxSynchronize")

    @contextmanager
    def context(self) -> Iterator[None]:
        """The device's primary context is this thread's current one. Mapping needs none."""
        self._call("cuCtxPushCurrent", self._context)
        try:
            yield
        finally:
            insist(self._call, "cuCtxPopCurrent")

    @contextmanager
    def allocated(self, size: int) -> Iterator[int]:
        """The address of memory by cuMemAlloc."""
        address = int(self._call("cuMemAlloc", size))
        try:
            yield address
        finally:
            insist(self._call, "cuMemFree", address)
