// Starting up, and what a device is.
#include <cstdio>
#include <cstring>
#include <map>

#include "api.h"
#include "call.h"

using namespace standin;

namespace {

// Of a device; what is not here is 0.
const std::map<int, int>& attributes() {
  static const auto* all = new std::map<int, int>{
      {1, 1024},        // MAX_THREADS_PER_BLOCK
      {2, 1024},        // MAX_BLOCK_DIM_X
      {3, 1024},        // MAX_BLOCK_DIM_Y
      {4, 64},          // MAX_BLOCK_DIM_Z
      {5, 2147483647},  // MAX_GRID_DIM_X
      {6, 65535},       // MAX_GRID_DIM_Y
      {7, 65535},       // MAX_GRID_DIM_Z
      {8, 49152},       // MAX_SHARED_MEMORY_PER_BLOCK
      {9, 65536},       // TOTAL_CONSTANT_MEMORY
      {10, 32},         // WARP_SIZE
      {12, 65536},      // MAX_REGISTERS_PER_BLOCK
      {13, 1000000},    // CLOCK_RATE
      {16, 132},        // MULTIPROCESSOR_COUNT
      {19, 1},          // CAN_MAP_HOST_MEMORY
      {31, 1},          // CONCURRENT_KERNELS
      {37, 5120},       // GLOBAL_MEMORY_BUS_WIDTH
      {38, 52428800},   // L2_CACHE_SIZE
      {39, 2048},       // MAX_THREADS_PER_MULTIPROCESSOR
      {40, 3},          // ASYNC_ENGINE_COUNT
      {41, 1},          // UNIFIED_ADDRESSING
      {78, 1},          // STREAM_PRIORITIES_SUPPORTED
      {99, 1},          // HOST_REGISTER_SUPPORTED
      {102, 1},         // VIRTUAL_MEMORY_MANAGEMENT_SUPPORTED
      {134, 0},         // HOST_NUMA_ID
      {141, 1},         // HOST_NUMA_VIRTUAL_MEMORY_MANAGEMENT_SUPPORTED
      {145, 1},         // HOST_VIRTUAL_MEMORY_MANAGEMENT_SUPPORTED
  };
  return *all;
}

CUresult uuid_of(const char* name, CUuuid* uuid, CUdevice device) {
  return enter(name, plain, [&](Call& call) -> CUresult {
    if (uuid == nullptr) return CUDA_ERROR_INVALID_VALUE;
    if (!call.is_device(device)) return CUDA_ERROR_INVALID_DEVICE;
    std::memcpy(uuid->bytes, "vmm-stand-in-gpu", sizeof uuid->bytes);
    uuid->bytes[15] = static_cast<char>('0' + device);
    return CUDA_SUCCESS;
  });
}

}  // namespace

STANDIN_API cuInit(unsigned flags) {
  return enter("cuInit", before_init, [&](Call& call) -> CUresult {
    if (flags != 0) return CUDA_ERROR_INVALID_VALUE;
    if (call.s.settings.devices == 0) return CUDA_ERROR_NO_DEVICE;
    call.s.initialised = true;
    return CUDA_SUCCESS;
  });
}

STANDIN_API cuDriverGetVersion(int* version) {
  return enter("cuDriverGetVersion", before_init | cannot_fail, [&](Call& call) -> CUresult {
    if (version == nullptr) return CUDA_ERROR_INVALID_VALUE;
    *version = call.s.settings.version;
    return CUDA_SUCCESS;
  });
}

STANDIN_API cuDeviceGet(CUdevice* device, int ordinal) {
  return enter("cuDeviceGet", plain, [&](Call& call) -> CUresult {
    if (device == nullptr) return CUDA_ERROR_INVALID_VALUE;
    if (!call.is_device(ordinal)) return CUDA_ERROR_INVALID_DEVICE;
    *device = ordinal;
    return CUDA_SUCCESS;
  });
}

STANDIN_API cuDeviceGetCount(int* count) {
  return enter("cuDeviceGetCount", plain, [&](Call& call) -> CUresult {
    if (count == nullptr) return CUDA_ERROR_INVALID_VALUE;
    *count = call.s.settings.devices;
    return CUDA_SUCCESS;
  });
}

STANDIN_API cuDeviceGetName(char* name, int length, CUdevice device) {
  return enter("cuDeviceGetName", plain, [&](Call& call) -> CUresult {
    if (name == nullptr || length <= 0) return CUDA_ERROR_INVALID_VALUE;
    if (!call.is_device(device)) return CUDA_ERROR_INVALID_DEVICE;
    std::snprintf(name, static_cast<std::size_t>(length), "vmm stand-in");
    return CUDA_SUCCESS;
  });
}

STANDIN_API cuDeviceGetUuid(CUuuid* uuid, CUdevice device) {
  return uuid_of("cuDeviceGetUuid", uuid, device);
}
STANDIN_API cuDeviceGetUuid_v2(CUuuid* uuid, CUdevice device) {
  return uuid_of("cuDeviceGetUuid", uuid, device);
}

STANDIN_API cuDeviceTotalMem_v2(std::size_t* bytes, CUdevice device) {
  return enter("cuDeviceTotalMem", plain, [&](Call& call) -> CUresult {
    if (bytes == nullptr) return CUDA_ERROR_INVALID_VALUE;
    if (!call.is_device(device)) return CUDA_ERROR_INVALID_DEVICE;
    *bytes = call.s.settings.capacity;
    return CUDA_SUCCESS;
  });
}

STANDIN_API cuDeviceGetAttribute(int* value, int attribute, CUdevice device) {
  return enter("cuDeviceGetAttribute", plain, [&](Call& call) -> CUresult {
    if (value == nullptr || attribute <= 0 || attribute > 200) return CUDA_ERROR_INVALID_VALUE;
    if (!call.is_device(device)) return CUDA_ERROR_INVALID_DEVICE;
    const Settings& settings = call.s.settings;
    const auto found = attributes().find(attribute);
    if (attribute == 75 || attribute == 76)  // COMPUTE_CAPABILITY_MAJOR, _MINOR
      *value = attribute == 75 ? settings.compute_capability / 10 : settings.compute_capability % 10;
    else if (attribute == 103)  // HANDLE_TYPE_POSIX_FILE_DESCRIPTOR_SUPPORTED
      *value = settings.posix_fd;
    else if (attribute == 110)  // GPU_DIRECT_RDMA_WITH_CUDA_VMM_SUPPORTED
      *value = settings.rdma != 0;
    else
      *value = found == attributes().end() ? 0 : found->second;
    return CUDA_SUCCESS;
  });
}

STANDIN_API cuDeviceCanAccessPeer(int* can, CUdevice device, CUdevice peer) {
  return enter("cuDeviceCanAccessPeer", plain, [&](Call& call) -> CUresult {
    if (can == nullptr) return CUDA_ERROR_INVALID_VALUE;
    if (!call.is_device(device) || !call.is_device(peer)) return CUDA_ERROR_INVALID_DEVICE;
    *can = device != peer && call.s.settings.reaches(device, peer);
    return CUDA_SUCCESS;
  });
}
