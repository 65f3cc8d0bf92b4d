// The part of libcuda's interface that is used: our own declarations, checked against cuda.h where a compiler
// finds it (cuda_abi_check.cpp), and a table of the functions. libcuda is never linked: a machine without it
// must be able to load this code.
#pragma once

#include <cstdint>

namespace vmm::cuda {

using Result = int;
using Device = int;
using Context = void*;
using Stream = void*;
using Event = void*;
using DevicePointer = std::uint64_t;
using AllocationHandle = std::uint64_t;

// CUresult
constexpr Result success = 0;
constexpr Result invalid_value = 1;
constexpr Result out_of_memory = 2;
constexpr Result not_initialized = 3;
constexpr Result invalid_context = 201;
constexpr Result invalid_handle = 400;
constexpr Result not_found = 500;
constexpr Result not_ready = 600;
constexpr Result capture_unsupported = 900;
constexpr Result capture_invalidated = 901;
constexpr Result capture_implicit = 906;
constexpr Result captured_event = 907;

constexpr int location_device = 1;       // CU_MEM_LOCATION_TYPE_DEVICE
constexpr int allocation_pinned = 1;     // CU_MEM_ALLOCATION_TYPE_PINNED
constexpr int access_none = 0;           // CU_MEM_ACCESS_FLAGS_PROT_NONE
constexpr int access_read_write = 3;     // CU_MEM_ACCESS_FLAGS_PROT_READWRITE
constexpr int granularity_minimum = 0;   // CU_MEM_ALLOC_GRANULARITY_MINIMUM
constexpr int attribute_major = 75;      // CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR
constexpr int attribute_minor = 76;      // CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR
constexpr int attribute_posix_fd = 103;  // CU_DEVICE_ATTRIBUTE_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR_SUPPORTED
constexpr int attribute_rdma = 110;      // CU_DEVICE_ATTRIBUTE_GPU_DIRECT_RDMA_WITH_CUDA_VMM_SUPPORTED
constexpr int handle_posix_fd = 1;       // CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR
constexpr int attribute_vmm = 102;       // CU_DEVICE_ATTRIBUTE_VIRTUAL_MEMORY_MANAGEMENT_SUPPORTED
constexpr int capture_relaxed = 2;       // CU_STREAM_CAPTURE_MODE_RELAXED
constexpr int capture_none = 0;          // CU_STREAM_CAPTURE_STATUS_NONE
constexpr unsigned stream_non_blocking = 1;  // CU_STREAM_NON_BLOCKING
constexpr unsigned event_blocking_sync = 1;  // CU_EVENT_BLOCKING_SYNC
constexpr unsigned event_no_timing = 2;      // CU_EVENT_DISABLE_TIMING
constexpr unsigned host_portable = 1;        // CU_MEMHOSTALLOC_PORTABLE

struct Location {
  int type;
  int id;
};
struct AllocationProperties {
  int type;
  int requested_handle_types;
  Location location;
  void* win32_metadata;
  struct {
    unsigned char compression;
    unsigned char gpu_direct_rdma;
    unsigned short usage;
    unsigned char reserved[4];
  } flags;
};
struct AccessDescriptor {
  Location location;
  int flags;
};

/// CALL(name, the CUDA version whose signature this is, parameters)
#define VMM_CUDA_CALLS(CALL)                                                                                 \
  CALL(cuInit, 2000, (unsigned flags))                                                                       \
  CALL(cuDriverGetVersion, 2020, (int* version))                                                             \
  CALL(cuGetErrorName, 6000, (Result error, const char** text))                                              \
  CALL(cuGetErrorString, 6000, (Result error, const char** text))                                            \
  CALL(cuDeviceGetCount, 2000, (int* count))                                                                 \
  CALL(cuDeviceGet, 2000, (Device * device, int ordinal))                                                    \
  CALL(cuDeviceGetName, 2000, (char* name, int length, Device device))                                       \
  CALL(cuDeviceGetAttribute, 2000, (int* value, int attribute, Device device))                               \
  CALL(cuDeviceCanAccessPeer, 4000, (int* can, Device device, Device peer))                                  \
  CALL(cuDevicePrimaryCtxRetain, 7000, (Context * context, Device device))                                   \
  CALL(cuDevicePrimaryCtxRelease, 11000, (Device device))                                                    \
  CALL(cuDevicePrimaryCtxGetState, 7000, (Device device, unsigned* flags, int* active))                      \
  CALL(cuDeviceTotalMem, 3020, (std::size_t* bytes, Device device))                                          \
  CALL(cuCtxGetStreamPriorityRange, 5050, (int* least, int* greatest))                                       \
  CALL(cuCtxGetCurrent, 4000, (Context * context))                                                           \
  CALL(cuCtxSetCurrent, 4000, (Context context))                                                             \
  CALL(cuCtxGetDevice, 2000, (Device * device))                                                              \
  CALL(cuCtxPushCurrent, 4000, (Context context))                                                            \
  CALL(cuCtxPopCurrent, 4000, (Context * context))                                                           \
  CALL(cuThreadExchangeStreamCaptureMode, 10010, (int* mode))                                                \
  CALL(cuMemGetInfo, 3020, (std::size_t* free_bytes, std::size_t* total))                                    \
  CALL(cuMemGetAllocationGranularity, 10020,                                                                 \
       (std::size_t* granularity, const AllocationProperties* properties, int option))                       \
  CALL(cuMemAddressReserve, 10020,                                                                           \
       (DevicePointer * address, std::size_t size, std::size_t alignment, DevicePointer hint,                \
        unsigned long long flags))                                                                           \
  CALL(cuMemAddressFree, 10020, (DevicePointer address, std::size_t size))                                   \
  CALL(cuMemCreate, 10020,                                                                                   \
       (AllocationHandle * handle, std::size_t size, const AllocationProperties* properties,                 \
        unsigned long long flags))                                                                           \
  CALL(cuMemRelease, 10020, (AllocationHandle handle))                                                       \
  CALL(cuMemMap, 10020,                                                                                      \
       (DevicePointer address, std::size_t size, std::size_t offset, AllocationHandle handle,                \
        unsigned long long flags))                                                                           \
  CALL(cuMemUnmap, 10020, (DevicePointer address, std::size_t size))                                         \
  CALL(cuMemSetAccess, 10020,                                                                                \
       (DevicePointer address, std::size_t size, const AccessDescriptor* access, std::size_t count))         \
  CALL(cuMemExportToShareableHandle, 10020,                                                                  \
       (void* shareable, AllocationHandle handle, int type, unsigned long long flags))                       \
  CALL(cuMemcpyAsync, 4000, (DevicePointer to, DevicePointer from, std::size_t size, Stream stream))         \
  CALL(cuMemHostAlloc, 2020, (void** memory, std::size_t size, unsigned flags))                              \
  CALL(cuMemFreeHost, 2000, (void* memory))                                                                  \
  CALL(cuMemcpyDtoHAsync, 3020, (void* to, DevicePointer from, std::size_t size, Stream stream))             \
  CALL(cuMemcpyHtoDAsync, 3020, (DevicePointer to, const void* from, std::size_t size, Stream stream))       \
  CALL(cuMemsetD8Async, 3020, (DevicePointer address, unsigned char value, std::size_t size, Stream stream)) \
  CALL(cuStreamCreate, 2000, (Stream * stream, unsigned flags))                                              \
  CALL(cuStreamCreateWithPriority, 5050, (Stream * stream, unsigned flags, int priority))                    \
  CALL(cuStreamDestroy, 4000, (Stream stream))                                                               \
  CALL(cuStreamSynchronize, 2000, (Stream stream))                                                           \
  CALL(cuStreamQuery, 2000, (Stream stream))                                                                 \
  CALL(cuStreamIsCapturing, 10000, (Stream stream, int* status))                                             \
  CALL(cuStreamGetCtx, 9020, (Stream stream, Context * context))                                             \
  CALL(cuEventCreate, 2000, (Event * event, unsigned flags))                                                 \
  CALL(cuEventRecord, 2000, (Event event, Stream stream))                                                    \
  CALL(cuEventQuery, 2000, (Event event))                                                                    \
  CALL(cuEventSynchronize, 2000, (Event event))                                                              \
  CALL(cuEventDestroy, 4000, (Event event))

/// The same, of a newer CUDA than the oldest that will do: null where the driver is older.
#define VMM_CUDA_NEWER_CALLS(CALL) CALL(cuCtxRecordEvent, 12050, (Context context, Event event))

struct Api {
#define VMM_DECLARE(name, version, parameters) Result(*name) parameters = nullptr;
  VMM_CUDA_CALLS(VMM_DECLARE)
  VMM_CUDA_NEWER_CALLS(VMM_DECLARE)
#undef VMM_DECLARE
};

/// CUDA works in the process that first used it, and in none that was forked from that.
inline constexpr const char* used_before_fork =
    "CUDA was used before fork() and cannot be used in the child: start workers with 'spawn'";

/// Opens libcuda.so.1 and resolves every function through cuGetProcAddress; calls none but
/// cuDriverGetVersion. Throws DriverError that says why CUDA cannot be used here, Forked in a child.
Api load();

}  // namespace vmm::cuda
