// cuGetProcAddress: which function a name and a version mean.
#include <cstring>
#include <vector>

#include "api.h"
#include "call.h"

using namespace standin;

namespace {

/// The function as the per-thread default stream's variants have it: stream 0 is the calling thread's.
template <auto Function>
struct PerThread;
template <class... Parameters, CUresult (*Function)(Parameters...)>
struct PerThread<Function> {
  static CUresult call(Parameters... parameters) {
    per_thread_default() = true;
    const CUresult result = Function(parameters...);
    per_thread_default() = false;
    return result;
  }
};

struct Entry {
  const char* name;
  int since;  // the CUDA version that introduced this signature
  void* function;
  void* per_thread;
};

#define ENTRY(name, since, symbol) \
  Entry { #name, since, reinterpret_cast<void*>(&symbol), nullptr }
#define STREAM(name, since, symbol) \
  Entry { #name, since, reinterpret_cast<void*>(&symbol), reinterpret_cast<void*>(&PerThread<&symbol>::call) }

const std::vector<Entry>& entries() {
  static const auto* all = new std::vector<Entry>{
      ENTRY(cuGetProcAddress, 11030, cuGetProcAddress),
      ENTRY(cuGetProcAddress, 12000, cuGetProcAddress_v2),
      ENTRY(cuGetErrorName, 6000, cuGetErrorName),
      ENTRY(cuGetErrorString, 6000, cuGetErrorString),
      ENTRY(cuInit, 2000, cuInit),
      ENTRY(cuDriverGetVersion, 2020, cuDriverGetVersion),
      ENTRY(cuDeviceGet, 2000, cuDeviceGet),
      ENTRY(cuDeviceGetCount, 2000, cuDeviceGetCount),
      ENTRY(cuDeviceGetName, 2000, cuDeviceGetName),
      ENTRY(cuDeviceGetUuid, 9020, cuDeviceGetUuid),
      ENTRY(cuDeviceGetUuid, 11040, cuDeviceGetUuid_v2),
      ENTRY(cuDeviceTotalMem, 3020, cuDeviceTotalMem_v2),
      ENTRY(cuDeviceGetAttribute, 2000, cuDeviceGetAttribute),
      ENTRY(cuDeviceCanAccessPeer, 4000, cuDeviceCanAccessPeer),
      ENTRY(cuDevicePrimaryCtxRetain, 7000, cuDevicePrimaryCtxRetain),
      ENTRY(cuDevicePrimaryCtxRelease, 11000, cuDevicePrimaryCtxRelease_v2),
      ENTRY(cuDevicePrimaryCtxSetFlags, 11000, cuDevicePrimaryCtxSetFlags_v2),
      ENTRY(cuDevicePrimaryCtxGetState, 7000, cuDevicePrimaryCtxGetState),
      ENTRY(cuCtxGetCurrent, 4000, cuCtxGetCurrent),
      ENTRY(cuCtxSetCurrent, 4000, cuCtxSetCurrent),
      ENTRY(cuCtxPushCurrent, 4000, cuCtxPushCurrent_v2),
      ENTRY(cuCtxPopCurrent, 4000, cuCtxPopCurrent_v2),
      ENTRY(cuCtxGetDevice, 2000, cuCtxGetDevice),
      ENTRY(cuCtxGetFlags, 7000, cuCtxGetFlags),
      ENTRY(cuCtxGetApiVersion, 3020, cuCtxGetApiVersion),
      ENTRY(cuCtxGetStreamPriorityRange, 5050, cuCtxGetStreamPriorityRange),
      ENTRY(cuCtxSynchronize, 2000, cuCtxSynchronize),
      ENTRY(cuCtxRecordEvent, 12050, cuCtxRecordEvent),
      ENTRY(cuMemGetAllocationGranularity, 10020, cuMemGetAllocationGranularity),
      ENTRY(cuMemAddressReserve, 10020, cuMemAddressReserve),
      ENTRY(cuMemAddressFree, 10020, cuMemAddressFree),
      ENTRY(cuMemCreate, 10020, cuMemCreate),
      ENTRY(cuMemRelease, 10020, cuMemRelease),
      ENTRY(cuMemMap, 10020, cuMemMap),
      ENTRY(cuMemUnmap, 10020, cuMemUnmap),
      ENTRY(cuMemSetAccess, 10020, cuMemSetAccess),
      ENTRY(cuMemGetAccess, 10020, cuMemGetAccess),
      ENTRY(cuMemRetainAllocationHandle, 11000, cuMemRetainAllocationHandle),
      ENTRY(cuMemGetAllocationPropertiesFromHandle, 10020, cuMemGetAllocationPropertiesFromHandle),
      ENTRY(cuMemExportToShareableHandle, 10020, cuMemExportToShareableHandle),
      ENTRY(cuMemImportFromShareableHandle, 10020, cuMemImportFromShareableHandle),
      ENTRY(cuMemGetInfo, 3020, cuMemGetInfo_v2),
      ENTRY(cuMemAlloc, 3020, cuMemAlloc_v2),
      ENTRY(cuMemFree, 3020, cuMemFree_v2),
      ENTRY(cuMemHostAlloc, 2020, cuMemHostAlloc),
      ENTRY(cuMemAllocHost, 3020, cuMemAllocHost_v2),
      ENTRY(cuMemFreeHost, 2000, cuMemFreeHost),
      ENTRY(cuMemHostRegister, 6050, cuMemHostRegister_v2),
      ENTRY(cuMemHostUnregister, 4000, cuMemHostUnregister),
      ENTRY(cuMemHostGetDevicePointer, 3020, cuMemHostGetDevicePointer_v2),
      ENTRY(cuMemGetAddressRange, 3020, cuMemGetAddressRange_v2),
      ENTRY(cuPointerGetAttribute, 4000, cuPointerGetAttribute),
      ENTRY(cuPointerGetAttributes, 7000, cuPointerGetAttributes),
      STREAM(cuMemcpy, 4000, cuMemcpy),
      STREAM(cuMemcpyAsync, 4000, cuMemcpyAsync),
      STREAM(cuMemcpyHtoD, 3020, cuMemcpyHtoD_v2),
      STREAM(cuMemcpyDtoH, 3020, cuMemcpyDtoH_v2),
      STREAM(cuMemcpyDtoD, 3020, cuMemcpyDtoD_v2),
      STREAM(cuMemcpyHtoDAsync, 3020, cuMemcpyHtoDAsync_v2),
      STREAM(cuMemcpyDtoHAsync, 3020, cuMemcpyDtoHAsync_v2),
      STREAM(cuMemcpyDtoDAsync, 3020, cuMemcpyDtoDAsync_v2),
      STREAM(cuMemsetD8, 3020, cuMemsetD8_v2),
      STREAM(cuMemsetD32, 3020, cuMemsetD32_v2),
      STREAM(cuMemsetD8Async, 3020, cuMemsetD8Async),
      STREAM(cuMemsetD16Async, 3020, cuMemsetD16Async),
      STREAM(cuMemsetD32Async, 3020, cuMemsetD32Async),
      STREAM(cuLaunchHostFunc, 10000, cuLaunchHostFunc),
      ENTRY(cuStreamCreate, 2000, cuStreamCreate),
      ENTRY(cuStreamCreateWithPriority, 5050, cuStreamCreateWithPriority),
      ENTRY(cuStreamDestroy, 4000, cuStreamDestroy_v2),
      STREAM(cuStreamSynchronize, 2000, cuStreamSynchronize),
      STREAM(cuStreamQuery, 2000, cuStreamQuery),
      STREAM(cuStreamWaitEvent, 3020, cuStreamWaitEvent),
      STREAM(cuStreamGetCtx, 9020, cuStreamGetCtx),
      STREAM(cuStreamGetFlags, 5050, cuStreamGetFlags),
      STREAM(cuStreamGetPriority, 5050, cuStreamGetPriority),
      STREAM(cuStreamGetId, 12000, cuStreamGetId),
      STREAM(cuStreamGetDevice, 12080, cuStreamGetDevice),
      ENTRY(cuThreadExchangeStreamCaptureMode, 10010, cuThreadExchangeStreamCaptureMode),
      STREAM(cuStreamBeginCapture, 10010, cuStreamBeginCapture_v2),
      STREAM(cuStreamEndCapture, 10000, cuStreamEndCapture),
      STREAM(cuStreamIsCapturing, 10000, cuStreamIsCapturing),
      ENTRY(cuGraphInstantiateWithFlags, 11040, cuGraphInstantiateWithFlags),
      ENTRY(cuGraphInstantiate, 12000, cuGraphInstantiateWithFlags),
      STREAM(cuGraphLaunch, 10000, cuGraphLaunch),
      ENTRY(cuGraphExecDestroy, 10000, cuGraphExecDestroy),
      ENTRY(cuGraphDestroy, 10000, cuGraphDestroy),
      ENTRY(cuEventCreate, 2000, cuEventCreate),
      ENTRY(cuEventDestroy, 4000, cuEventDestroy_v2),
      STREAM(cuEventRecord, 2000, cuEventRecord),
      STREAM(cuEventRecordWithFlags, 11010, cuEventRecordWithFlags),
      ENTRY(cuEventQuery, 2000, cuEventQuery),
      ENTRY(cuEventSynchronize, 2000, cuEventSynchronize),
      ENTRY(cuEventElapsedTime, 2000, cuEventElapsedTime),
      ENTRY(cuEventElapsedTime, 12080, cuEventElapsedTime_v2),
  };
  return *all;
}

/// The newest signature that is not newer than the version asked for; what the driver is too old for is not
/// there.
void* find(const char* symbol, int version, int driver, bool per_thread, int& status) {
  const Entry* best = nullptr;
  status = CU_GET_PROC_ADDRESS_SYMBOL_NOT_FOUND;
  for (const Entry& entry : entries()) {
    if (std::strcmp(entry.name, symbol) != 0 || entry.since > driver) continue;
    if (entry.since > version) {
      if (best == nullptr) status = CU_GET_PROC_ADDRESS_VERSION_NOT_SUFFICIENT;
      continue;
    }
    if (best == nullptr || entry.since > best->since) best = &entry;
  }
  if (best == nullptr) return nullptr;
  status = CU_GET_PROC_ADDRESS_SUCCESS;
  return per_thread && best->per_thread != nullptr ? best->per_thread : best->function;
}

CUresult resolve(const char* symbol, void** pfn, int version, std::uint64_t flags, int* status, bool newer) {
  return enter("cuGetProcAddress", before_init | cannot_fail, [&](Call& call) -> CUresult {
    const Settings& settings = call.s.settings;
    if (symbol == nullptr || pfn == nullptr || flags > 3) return CUDA_ERROR_INVALID_VALUE;
    *pfn = nullptr;
    if (version > settings.version) return CUDA_ERROR_INVALID_VALUE;
    int found = CU_GET_PROC_ADDRESS_SUCCESS;
    *pfn = find(symbol, version, settings.version,
                (flags & CU_GET_PROC_ADDRESS_PER_THREAD_DEFAULT_STREAM) != 0, found);
    if (status != nullptr) *status = found;
    if (*pfn != nullptr) return CUDA_SUCCESS;
    return newer ? settings.missing_result : CUDA_ERROR_NOT_FOUND;
  });
}

}  // namespace

STANDIN_API cuGetProcAddress(const char* symbol, void** pfn, int version, std::uint64_t flags) {
  return resolve(symbol, pfn, version, flags, nullptr, false);
}
STANDIN_API cuGetProcAddress_v2(const char* symbol, void** pfn, int version, std::uint64_t flags,
                                int* status) {
  return resolve(symbol, pfn, version, flags, status, true);
}
