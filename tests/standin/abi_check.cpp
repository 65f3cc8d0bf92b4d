// Compares our declarations with cuda.h: layouts, values, and the size of every parameter.
// Only compiled, where VMM_CUDA_INCLUDE says where cuda.h is.
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <type_traits>

namespace real {
#include <cuda.h>
}
#undef cuGetProcAddress  // cuda.h gives the newest signature the plain name; we declare the old ones too
#undef cuDeviceGetUuid
#undef cuEventElapsedTime
namespace ours {
#define STANDIN_DECLARE_ONLY
#include "api.h"
}  // namespace ours

template <class Real, class Ours>
struct Same : std::false_type {};
template <class... Reals, class... Ours>
  requires(sizeof...(Reals) == sizeof...(Ours))
struct Same<real::CUresult (*)(Reals...), ours::CUresult (*)(Ours...)>
    : std::bool_constant<((sizeof(Reals) == sizeof(Ours)) && ... && true) &&
                         ((std::is_pointer_v<Reals> == std::is_pointer_v<Ours>) && ... && true)> {};

#define CHECK_CALL(name) static_assert(Same<decltype(&real::name), decltype(&ours::name)>::value, #name)
#define CHECK_VALUE(name) static_assert(static_cast<long>(real::name) == static_cast<long>(ours::name), #name)
#define CHECK_LAYOUT(type) \
  static_assert(sizeof(real::type) == sizeof(ours::type) && alignof(real::type) == alignof(ours::type), #type)
#define CHECK_MEMBER(type, member) \
  static_assert(offsetof(real::type, member) == offsetof(ours::type, member), #type "." #member)

CHECK_LAYOUT(CUuuid);
CHECK_LAYOUT(CUmemLocation);
CHECK_MEMBER(CUmemLocation, type);
CHECK_MEMBER(CUmemLocation, id);
CHECK_LAYOUT(CUmemAllocationProp);
CHECK_MEMBER(CUmemAllocationProp, requestedHandleTypes);
CHECK_MEMBER(CUmemAllocationProp, location);
CHECK_MEMBER(CUmemAllocationProp, win32HandleMetaData);
CHECK_MEMBER(CUmemAllocationProp, allocFlags);
CHECK_LAYOUT(CUmemAccessDesc);
CHECK_MEMBER(CUmemAccessDesc, flags);

CHECK_VALUE(CUDA_ERROR_CAPTURED_EVENT);
CHECK_VALUE(CUDA_ERROR_CONTEXT_IS_DESTROYED);
CHECK_VALUE(CUDA_ERROR_HOST_MEMORY_ALREADY_REGISTERED);
CHECK_VALUE(CUDA_ERROR_HOST_MEMORY_NOT_REGISTERED);
CHECK_VALUE(CUDA_ERROR_ILLEGAL_ADDRESS);
CHECK_VALUE(CUDA_ERROR_ILLEGAL_STATE);
CHECK_VALUE(CUDA_ERROR_INVALID_CONTEXT);
CHECK_VALUE(CUDA_ERROR_INVALID_DEVICE);
CHECK_VALUE(CUDA_ERROR_INVALID_HANDLE);
CHECK_VALUE(CUDA_ERROR_INVALID_VALUE);
CHECK_VALUE(CUDA_ERROR_NOT_FOUND);
CHECK_VALUE(CUDA_ERROR_NOT_INITIALIZED);
CHECK_VALUE(CUDA_ERROR_NOT_PERMITTED);
CHECK_VALUE(CUDA_ERROR_NOT_READY);
CHECK_VALUE(CUDA_ERROR_NOT_SUPPORTED);
CHECK_VALUE(CUDA_ERROR_NO_DEVICE);
CHECK_VALUE(CUDA_ERROR_OPERATING_SYSTEM);
CHECK_VALUE(CUDA_ERROR_OUT_OF_MEMORY);
CHECK_VALUE(CUDA_ERROR_PRIMARY_CONTEXT_ACTIVE);
CHECK_VALUE(CUDA_ERROR_STREAM_CAPTURE_IMPLICIT);
CHECK_VALUE(CUDA_ERROR_STREAM_CAPTURE_INVALIDATED);
CHECK_VALUE(CUDA_ERROR_STREAM_CAPTURE_ISOLATION);
CHECK_VALUE(CUDA_ERROR_STREAM_CAPTURE_MERGE);
CHECK_VALUE(CUDA_ERROR_STREAM_CAPTURE_UNJOINED);
CHECK_VALUE(CUDA_ERROR_STREAM_CAPTURE_UNMATCHED);
CHECK_VALUE(CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED);
CHECK_VALUE(CUDA_ERROR_STREAM_CAPTURE_WRONG_THREAD);
CHECK_VALUE(CUDA_ERROR_UNKNOWN);
CHECK_VALUE(CUDA_SUCCESS);
CHECK_VALUE(CU_EVENT_BLOCKING_SYNC);
CHECK_VALUE(CU_EVENT_DISABLE_TIMING);
CHECK_VALUE(CU_EVENT_INTERPROCESS);
CHECK_VALUE(CU_GET_PROC_ADDRESS_LEGACY_STREAM);
CHECK_VALUE(CU_GET_PROC_ADDRESS_PER_THREAD_DEFAULT_STREAM);
CHECK_VALUE(CU_GET_PROC_ADDRESS_SUCCESS);
CHECK_VALUE(CU_GET_PROC_ADDRESS_SYMBOL_NOT_FOUND);
CHECK_VALUE(CU_GET_PROC_ADDRESS_VERSION_NOT_SUFFICIENT);
CHECK_VALUE(CU_MEMORYTYPE_DEVICE);
CHECK_VALUE(CU_MEMORYTYPE_HOST);
CHECK_VALUE(CU_MEM_ACCESS_FLAGS_PROT_NONE);
CHECK_VALUE(CU_MEM_ACCESS_FLAGS_PROT_READ);
CHECK_VALUE(CU_MEM_ACCESS_FLAGS_PROT_READWRITE);
CHECK_VALUE(CU_MEM_ALLOCATION_TYPE_PINNED);
CHECK_VALUE(CU_MEM_HANDLE_TYPE_FABRIC);
CHECK_VALUE(CU_MEM_HANDLE_TYPE_NONE);
CHECK_VALUE(CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR);
CHECK_VALUE(CU_MEM_LOCATION_TYPE_DEVICE);
CHECK_VALUE(CU_MEM_LOCATION_TYPE_HOST);
CHECK_VALUE(CU_MEM_LOCATION_TYPE_HOST_NUMA);
CHECK_VALUE(CU_MEM_LOCATION_TYPE_HOST_NUMA_CURRENT);
CHECK_VALUE(CU_POINTER_ATTRIBUTE_ACCESS_FLAGS);
CHECK_VALUE(CU_POINTER_ATTRIBUTE_ALLOWED_HANDLE_TYPES);
CHECK_VALUE(CU_POINTER_ATTRIBUTE_CONTEXT);
CHECK_VALUE(CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL);
CHECK_VALUE(CU_POINTER_ATTRIBUTE_DEVICE_POINTER);
CHECK_VALUE(CU_POINTER_ATTRIBUTE_HOST_POINTER);
CHECK_VALUE(CU_POINTER_ATTRIBUTE_IS_MANAGED);
CHECK_VALUE(CU_POINTER_ATTRIBUTE_MAPPED);
CHECK_VALUE(CU_POINTER_ATTRIBUTE_MAPPING_BASE_ADDR);
CHECK_VALUE(CU_POINTER_ATTRIBUTE_MAPPING_SIZE);
CHECK_VALUE(CU_POINTER_ATTRIBUTE_MEMORY_TYPE);
CHECK_VALUE(CU_POINTER_ATTRIBUTE_RANGE_SIZE);
CHECK_VALUE(CU_POINTER_ATTRIBUTE_RANGE_START_ADDR);
CHECK_VALUE(CU_STREAM_CAPTURE_MODE_GLOBAL);
CHECK_VALUE(CU_STREAM_CAPTURE_MODE_RELAXED);
CHECK_VALUE(CU_STREAM_CAPTURE_MODE_THREAD_LOCAL);
CHECK_VALUE(CU_STREAM_CAPTURE_STATUS_ACTIVE);
CHECK_VALUE(CU_STREAM_CAPTURE_STATUS_INVALIDATED);
CHECK_VALUE(CU_STREAM_CAPTURE_STATUS_NONE);
CHECK_VALUE(CU_STREAM_NON_BLOCKING);

CHECK_CALL(cuGetProcAddress_v2);
CHECK_CALL(cuGetErrorName);
CHECK_CALL(cuGetErrorString);
CHECK_CALL(cuInit);
CHECK_CALL(cuDriverGetVersion);
CHECK_CALL(cuDeviceGet);
CHECK_CALL(cuDeviceGetCount);
CHECK_CALL(cuDeviceGetName);
CHECK_CALL(cuDeviceGetUuid_v2);
CHECK_CALL(cuDeviceTotalMem_v2);
CHECK_CALL(cuDeviceGetAttribute);
CHECK_CALL(cuDeviceCanAccessPeer);
CHECK_CALL(cuDevicePrimaryCtxRetain);
CHECK_CALL(cuDevicePrimaryCtxRelease_v2);
CHECK_CALL(cuDevicePrimaryCtxSetFlags_v2);
CHECK_CALL(cuDevicePrimaryCtxGetState);
CHECK_CALL(cuCtxGetCurrent);
CHECK_CALL(cuCtxSetCurrent);
CHECK_CALL(cuCtxPushCurrent_v2);
CHECK_CALL(cuCtxPopCurrent_v2);
CHECK_CALL(cuCtxGetDevice);
CHECK_CALL(cuCtxGetFlags);
CHECK_CALL(cuCtxGetApiVersion);
CHECK_CALL(cuCtxGetStreamPriorityRange);
CHECK_CALL(cuCtxSynchronize);
CHECK_CALL(cuCtxRecordEvent);
CHECK_CALL(cuMemGetAllocationGranularity);
CHECK_CALL(cuMemAddressReserve);
CHECK_CALL(cuMemAddressFree);
CHECK_CALL(cuMemCreate);
CHECK_CALL(cuMemRelease);
CHECK_CALL(cuMemMap);
CHECK_CALL(cuMemUnmap);
CHECK_CALL(cuMemSetAccess);
CHECK_CALL(cuMemGetAccess);
CHECK_CALL(cuMemRetainAllocationHandle);
CHECK_CALL(cuMemGetAllocationPropertiesFromHandle);
CHECK_CALL(cuMemExportToShareableHandle);
CHECK_CALL(cuMemImportFromShareableHandle);
CHECK_CALL(cuMemGetInfo_v2);
CHECK_CALL(cuMemAlloc_v2);
CHECK_CALL(cuMemFree_v2);
CHECK_CALL(cuMemHostAlloc);
CHECK_CALL(cuMemAllocHost_v2);
CHECK_CALL(cuMemFreeHost);
CHECK_CALL(cuMemHostRegister_v2);
CHECK_CALL(cuMemHostUnregister);
CHECK_CALL(cuMemHostGetDevicePointer_v2);
CHECK_CALL(cuMemGetAddressRange_v2);
CHECK_CALL(cuPointerGetAttribute);
CHECK_CALL(cuPointerGetAttributes);
CHECK_CALL(cuMemcpy);
CHECK_CALL(cuMemcpyAsync);
CHECK_CALL(cuMemcpyHtoD_v2);
CHECK_CALL(cuMemcpyDtoH_v2);
CHECK_CALL(cuMemcpyDtoD_v2);
CHECK_CALL(cuMemcpyHtoDAsync_v2);
CHECK_CALL(cuMemcpyDtoHAsync_v2);
CHECK_CALL(cuMemcpyDtoDAsync_v2);
CHECK_CALL(cuMemsetD8_v2);
CHECK_CALL(cuMemsetD32_v2);
CHECK_CALL(cuMemsetD8Async);
CHECK_CALL(cuMemsetD16Async);
CHECK_CALL(cuMemsetD32Async);
CHECK_CALL(cuLaunchHostFunc);
CHECK_CALL(cuStreamCreate);
CHECK_CALL(cuStreamCreateWithPriority);
CHECK_CALL(cuStreamDestroy_v2);
CHECK_CALL(cuStreamSynchronize);
CHECK_CALL(cuStreamQuery);
CHECK_CALL(cuStreamWaitEvent);
CHECK_CALL(cuStreamGetCtx);
CHECK_CALL(cuStreamGetFlags);
CHECK_CALL(cuStreamGetPriority);
CHECK_CALL(cuStreamGetId);
CHECK_CALL(cuStreamGetDevice);
CHECK_CALL(cuThreadExchangeStreamCaptureMode);
CHECK_CALL(cuStreamBeginCapture_v2);
CHECK_CALL(cuStreamEndCapture);
CHECK_CALL(cuStreamIsCapturing);
CHECK_CALL(cuGraphInstantiateWithFlags);
CHECK_CALL(cuGraphLaunch);
CHECK_CALL(cuGraphExecDestroy);
CHECK_CALL(cuGraphDestroy);
CHECK_CALL(cuEventCreate);
CHECK_CALL(cuEventDestroy_v2);
CHECK_CALL(cuEventRecord);
CHECK_CALL(cuEventRecordWithFlags);
CHECK_CALL(cuEventQuery);
CHECK_CALL(cuEventSynchronize);
CHECK_CALL(cuEventElapsedTime_v2);
