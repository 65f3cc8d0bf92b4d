// Our declarations against NVIDIA's, wherever the compiler finds cuda.h. There is nothing to run here.
#include "driver/cuda_api.h"
#include "driver/cuda_results.h"

#if __has_include(<cuda.h>)
#include <cuda.h>

#include <cstddef>

namespace vmm::cuda {
namespace {

static_assert(success == CUDA_SUCCESS && invalid_value == CUDA_ERROR_INVALID_VALUE);
static_assert(out_of_memory == CUDA_ERROR_OUT_OF_MEMORY && not_initialized == CUDA_ERROR_NOT_INITIALIZED);
static_assert(not_found == CUDA_ERROR_NOT_FOUND && not_ready == CUDA_ERROR_NOT_READY);
static_assert(capture_implicit == CUDA_ERROR_STREAM_CAPTURE_IMPLICIT);
static_assert(ecc_uncorrectable == CUDA_ERROR_ECC_UNCORRECTABLE);
static_assert(nvlink_uncorrectable == CUDA_ERROR_NVLINK_UNCORRECTABLE);
static_assert(illegal_address == CUDA_ERROR_ILLEGAL_ADDRESS && launch_timeout == CUDA_ERROR_LAUNCH_TIMEOUT);
static_assert(device_assert == CUDA_ERROR_ASSERT && launch_failed == CUDA_ERROR_LAUNCH_FAILED);
static_assert(hardware_stack_error == CUDA_ERROR_HARDWARE_STACK_ERROR);
static_assert(illegal_instruction == CUDA_ERROR_ILLEGAL_INSTRUCTION);
static_assert(misaligned_address == CUDA_ERROR_MISALIGNED_ADDRESS);
static_assert(invalid_address_space == CUDA_ERROR_INVALID_ADDRESS_SPACE);
static_assert(invalid_program_counter == CUDA_ERROR_INVALID_PC);
static_assert(mps_client_terminated == CUDA_ERROR_MPS_CLIENT_TERMINATED);
static_assert(external_device == CUDA_ERROR_EXTERNAL_DEVICE);
#if CUDA_VERSION >= 13000  // older headers have not all of them
static_assert(contained == CUDA_ERROR_CONTAINED && tensor_memory_leak == CUDA_ERROR_TENSOR_MEMORY_LEAK);
#endif
static_assert(capture_invalidated == CUDA_ERROR_STREAM_CAPTURE_INVALIDATED);
static_assert(captured_event == CUDA_ERROR_CAPTURED_EVENT);
static_assert(invalid_context == CUDA_ERROR_INVALID_CONTEXT && invalid_handle == CUDA_ERROR_INVALID_HANDLE);
static_assert(location_device == CU_MEM_LOCATION_TYPE_DEVICE);
static_assert(allocation_pinned == CU_MEM_ALLOCATION_TYPE_PINNED);
static_assert(access_none == CU_MEM_ACCESS_FLAGS_PROT_NONE);
static_assert(access_read_write == CU_MEM_ACCESS_FLAGS_PROT_READWRITE);
static_assert(granularity_minimum == CU_MEM_ALLOC_GRANULARITY_MINIMUM);
static_assert(attribute_vmm == CU_DEVICE_ATTRIBUTE_VIRTUAL_MEMORY_MANAGEMENT_SUPPORTED);
static_assert(attribute_major == CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR);
static_assert(attribute_minor == CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR);
static_assert(attribute_posix_fd == CU_DEVICE_ATTRIBUTE_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR_SUPPORTED);
static_assert(attribute_rdma == CU_DEVICE_ATTRIBUTE_GPU_DIRECT_RDMA_WITH_CUDA_VMM_SUPPORTED);
static_assert(handle_posix_fd == CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR);
static_assert(capture_relaxed == CU_STREAM_CAPTURE_MODE_RELAXED);
static_assert(capture_none == CU_STREAM_CAPTURE_STATUS_NONE);
static_assert(stream_non_blocking == CU_STREAM_NON_BLOCKING && event_no_timing == CU_EVENT_DISABLE_TIMING);
static_assert(event_blocking_sync == CU_EVENT_BLOCKING_SYNC && host_portable == CU_MEMHOSTALLOC_PORTABLE);

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
VMM_CUDA_NEWER_CALLS(VMM_COMPARE)
#undef VMM_COMPARE

}  // namespace
}  // namespace vmm::cuda
#endif
