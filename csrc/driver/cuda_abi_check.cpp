// Our declarations against NVIDIA's, wherever the compiler finds cuda.h. There is nothing to run here.
#include "driver/cuda_api.h"

#if __has_include(<cuda.h>)
#include <cuda.h>

#include <cstddef>

namespace vmm::cuda {
namespace {

static_assert(success == CUDA_SUCCESS && invalid_value == CUDA_ERROR_INVALID_VALUE);
static_assert(out_of_memory == CUDA_ERROR_OUT_OF_MEMORY && not_initialized == CUDA_ERROR_NOT_INITIALIZED);
static_assert(not_found == CUDA_ERROR_NOT_FOUND && not_ready == CUDA_ERROR_NOT_READY);
static_assert(capture_implicit == CUDA_ERROR_STREAM_CAPTURE_IMPLICIT);
static_assert(capture_invalidated == CUDA_ERROR_STREAM_CAPTURE_INVALIDATED);
static_assert(captured_event == CUDA_ERROR_CAPTURED_EVENT);
static_assert(invalid_context == CUDA_ERROR_INVALID_CONTEXT && invalid_handle == CUDA_ERROR_INVALID_HANDLE);
static_assert(location_device == CU_MEM_LOCATION_TYPE_DEVICE);
static_assert(allocation_pinned == CU_MEM_ALLOCATION_TYPE_PINNED);
static_assert(access_none == CU_MEM_ACCESS_FLAGS_PROT_NONE);
static_assert(access_read_write == CU_MEM_ACCESS_FLAGS_PROT_READWRITE);
static_assert(granularity_minimum == CU_MEM_ALLOC_GRANULARITY_MINIMUM);
static_assert(attribute_vmm == CU_DEVICE_ATTRIBUTE_VIRTUAL_MEMORY_MANAGEMENT_SUPPORTED);
static_assert(capture_relaxed == CU_STREAM_CAPTURE_MODE_RELAXED);
static_assert(capture_none == CU_STREAM_CAPTURE_STATUS_NONE);
static_assert(stream_non_blocking == CU_STREAM_NON_BLOCKING && event_no_timing == CU_EVENT_DISABLE_TIMING);

static_assert(sizeof(DevicePointer) == sizeof(CUdeviceptr));
static_assert(sizeof(AllocationHandle) == sizeof(CUmemGenericAllocationHandle));
static_assert(sizeof(Location) == sizeof(CUmemLocation));
static_assert(sizeof(AccessDescriptor) == sizeof(CUmemAccessDesc));
static_assert(offsetof(AccessDescriptor, flags) == offsetof(CUmemAccessDesc, flags));
static_assert(sizeof(AllocationProperties) == sizeof(CUmemAllocationProp));
static_assert(offsetof(AllocationProperties, location) == offsetof(CUmemAllocationProp, location));
static_assert(offsetof(AllocationProperties, win32_metadata) ==
              offsetof(CUmemAllocationProp, win32HandleMetaData));
static_assert(offsetof(AllocationProperties, flags) == offsetof(CUmemAllocationProp, allocFlags));

/// The number of parameters, and the size of each: their types have other names.
template <class... Ours, class... Theirs>
constexpr bool alike(Result (*)(Ours...), CUresult (*)(Theirs...)) {
  if constexpr (sizeof...(Ours) != sizeof...(Theirs))
    return false;
  else
    return ((sizeof(Ours) == sizeof(Theirs)) && ...);
}
// By a name of our own first: cuda.h has macros for those whose signature has changed.
#define VMM_COMPARE(name, version, parameters) \
  using name##_ours = Result(*) parameters;    \
  static_assert(alike(name##_ours{}, &::name));
VMM_CUDA_CALLS(VMM_COMPARE)
#undef VMM_COMPARE

}  // namespace
}  // namespace vmm::cuda
#endif
