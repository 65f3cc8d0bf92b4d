// The names of the results, all of cuda.h's.
#include <algorithm>
#include <array>

#include "api.h"
#include "call.h"

namespace {

struct Text {
  CUresult code;
  const char* name;
  const char* words;
};

constexpr std::array texts{
    Text{0, "CUDA_SUCCESS", "no error"},
    Text{1, "CUDA_ERROR_INVALID_VALUE", "invalid argument"},
    Text{2, "CUDA_ERROR_OUT_OF_MEMORY", "out of memory"},
    Text{3, "CUDA_ERROR_NOT_INITIALIZED", "initialization error"},
    Text{4, "CUDA_ERROR_DEINITIALIZED", "deinitialized"},
    Text{5, "CUDA_ERROR_PROFILER_DISABLED", "profiler disabled"},
    Text{6, "CUDA_ERROR_PROFILER_NOT_INITIALIZED", "profiler not initialized"},
    Text{7, "CUDA_ERROR_PROFILER_ALREADY_STARTED", "profiler already started"},
    Text{8, "CUDA_ERROR_PROFILER_ALREADY_STOPPED", "profiler already stopped"},
    Text{34, "CUDA_ERROR_STUB_LIBRARY", "stub library"},
    Text{36, "CUDA_ERROR_CALL_REQUIRES_NEWER_DRIVER", "call requires newer driver"},
    Text{46, "CUDA_ERROR_DEVICE_UNAVAILABLE", "device unavailable"},
    Text{47, "CUDA_ERROR_MULTICAST_RESOURCE_FULL", "multicast resource full"},
    Text{100, "CUDA_ERROR_NO_DEVICE", "no CUDA-capable device is detected"},
    Text{101, "CUDA_ERROR_INVALID_DEVICE", "invalid device ordinal"},
    Text{102, "CUDA_ERROR_DEVICE_NOT_LICENSED", "device not licensed"},
    Text{200, "CUDA_ERROR_INVALID_IMAGE", "invalid image"},
    Text{201, "CUDA_ERROR_INVALID_CONTEXT", "invalid device context"},
    Text{202, "CUDA_ERROR_CONTEXT_ALREADY_CURRENT", "context already current"},
    Text{205, "CUDA_ERROR_MAP_FAILED", "map failed"},
    Text{206, "CUDA_ERROR_UNMAP_FAILED", "unmap failed"},
    Text{207, "CUDA_ERROR_ARRAY_IS_MAPPED", "array is mapped"},
    Text{208, "CUDA_ERROR_ALREADY_MAPPED", "already mapped"},
    Text{209, "CUDA_ERROR_NO_BINARY_FOR_GPU", "no binary for gpu"},
    Text{210, "CUDA_ERROR_ALREADY_ACQUIRED", "already acquired"},
    Text{211, "CUDA_ERROR_NOT_MAPPED", "not mapped"},
    Text{212, "CUDA_ERROR_NOT_MAPPED_AS_ARRAY", "not mapped as array"},
    Text{213, "CUDA_ERROR_NOT_MAPPED_AS_POINTER", "not mapped as pointer"},
    Text{214, "CUDA_ERROR_ECC_UNCORRECTABLE", "ecc uncorrectable"},
    Text{215, "CUDA_ERROR_UNSUPPORTED_LIMIT", "unsupported limit"},
    Text{216, "CUDA_ERROR_CONTEXT_ALREADY_IN_USE", "context already in use"},
    Text{217, "CUDA_ERROR_PEER_ACCESS_UNSUPPORTED", "peer access unsupported"},
    Text{218, "CUDA_ERROR_INVALID_PTX", "invalid ptx"},
    Text{219, "CUDA_ERROR_INVALID_GRAPHICS_CONTEXT", "invalid graphics context"},
    Text{220, "CUDA_ERROR_NVLINK_UNCORRECTABLE", "nvlink uncorrectable"},
    Text{221, "CUDA_ERROR_JIT_COMPILER_NOT_FOUND", "jit compiler not found"},
    Text{222, "CUDA_ERROR_UNSUPPORTED_PTX_VERSION", "unsupported ptx version"},
    Text{223, "CUDA_ERROR_JIT_COMPILATION_DISABLED", "jit compilation disabled"},
    Text{224, "CUDA_ERROR_UNSUPPORTED_EXEC_AFFINITY", "unsupported exec affinity"},
    Text{225, "CUDA_ERROR_UNSUPPORTED_DEVSIDE_SYNC", "unsupported devside sync"},
    Text{226, "CUDA_ERROR_CONTAINED", "contained"},
    Text{227, "CUDA_ERROR_INSUFFICIENT_LOADER_VERSION", "insufficient loader version"},
    Text{300, "CUDA_ERROR_INVALID_SOURCE", "invalid source"},
    Text{301, "CUDA_ERROR_FILE_NOT_FOUND", "file not found"},
    Text{302, "CUDA_ERROR_SHARED_OBJECT_SYMBOL_NOT_FOUND", "shared object symbol not found"},
    Text{303, "CUDA_ERROR_SHARED_OBJECT_INIT_FAILED", "shared object init failed"},
    Text{304, "CUDA_ERROR_OPERATING_SYSTEM", "operating system"},
    Text{400, "CUDA_ERROR_INVALID_HANDLE", "invalid resource handle"},
    Text{401, "CUDA_ERROR_ILLEGAL_STATE", "illegal state"},
    Text{402, "CUDA_ERROR_LOSSY_QUERY", "lossy query"},
    Text{500, "CUDA_ERROR_NOT_FOUND", "named symbol not found"},
    Text{600, "CUDA_ERROR_NOT_READY", "device not ready"},
    Text{700, "CUDA_ERROR_ILLEGAL_ADDRESS", "an illegal memory access was encountered"},
    Text{701, "CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES", "launch out of resources"},
    Text{702, "CUDA_ERROR_LAUNCH_TIMEOUT", "launch timeout"},
    Text{703, "CUDA_ERROR_LAUNCH_INCOMPATIBLE_TEXTURING", "launch incompatible texturing"},
    Text{704, "CUDA_ERROR_PEER_ACCESS_ALREADY_ENABLED", "peer access already enabled"},
    Text{705, "CUDA_ERROR_PEER_ACCESS_NOT_ENABLED", "peer access not enabled"},
    Text{708, "CUDA_ERROR_PRIMARY_CONTEXT_ACTIVE", "primary context active"},
    Text{709, "CUDA_ERROR_CONTEXT_IS_DESTROYED", "context is destroyed"},
    Text{710, "CUDA_ERROR_ASSERT", "assert"},
    Text{711, "CUDA_ERROR_TOO_MANY_PEERS", "too many peers"},
    Text{712, "CUDA_ERROR_HOST_MEMORY_ALREADY_REGISTERED", "host memory already registered"},
    Text{713, "CUDA_ERROR_HOST_MEMORY_NOT_REGISTERED", "host memory not registered"},
    Text{714, "CUDA_ERROR_HARDWARE_STACK_ERROR", "hardware stack error"},
    Text{715, "CUDA_ERROR_ILLEGAL_INSTRUCTION", "illegal instruction"},
    Text{716, "CUDA_ERROR_MISALIGNED_ADDRESS", "misaligned address"},
    Text{717, "CUDA_ERROR_INVALID_ADDRESS_SPACE", "invalid address space"},
    Text{718, "CUDA_ERROR_INVALID_PC", "invalid pc"},
    Text{719, "CUDA_ERROR_LAUNCH_FAILED", "unspecified launch failure"},
    Text{720, "CUDA_ERROR_COOPERATIVE_LAUNCH_TOO_LARGE", "cooperative launch too large"},
    Text{721, "CUDA_ERROR_TENSOR_MEMORY_LEAK", "tensor memory leak"},
    Text{800, "CUDA_ERROR_NOT_PERMITTED", "operation not permitted"},
    Text{801, "CUDA_ERROR_NOT_SUPPORTED", "operation not supported"},
    Text{802, "CUDA_ERROR_SYSTEM_NOT_READY", "system not ready"},
    Text{803, "CUDA_ERROR_SYSTEM_DRIVER_MISMATCH", "system driver mismatch"},
    Text{804, "CUDA_ERROR_COMPAT_NOT_SUPPORTED_ON_DEVICE", "compat not supported on device"},
    Text{805, "CUDA_ERROR_MPS_CONNECTION_FAILED", "mps connection failed"},
    Text{806, "CUDA_ERROR_MPS_RPC_FAILURE", "mps rpc failure"},
    Text{807, "CUDA_ERROR_MPS_SERVER_NOT_READY", "mps server not ready"},
    Text{808, "CUDA_ERROR_MPS_MAX_CLIENTS_REACHED", "mps max clients reached"},
    Text{809, "CUDA_ERROR_MPS_MAX_CONNECTIONS_REACHED", "mps max connections reached"},
    Text{810, "CUDA_ERROR_MPS_CLIENT_TERMINATED", "mps client terminated"},
    Text{811, "CUDA_ERROR_CDP_NOT_SUPPORTED", "cdp not supported"},
    Text{812, "CUDA_ERROR_CDP_VERSION_MISMATCH", "cdp version mismatch"},
    Text{900, "CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED", "operation not permitted when stream is capturing"},
    Text{901, "CUDA_ERROR_STREAM_CAPTURE_INVALIDATED",
         "operation failed due to a previous error during capture"},
    Text{902, "CUDA_ERROR_STREAM_CAPTURE_MERGE", "stream capture merge"},
    Text{903, "CUDA_ERROR_STREAM_CAPTURE_UNMATCHED", "stream capture unmatched"},
    Text{904, "CUDA_ERROR_STREAM_CAPTURE_UNJOINED", "stream capture unjoined"},
    Text{905, "CUDA_ERROR_STREAM_CAPTURE_ISOLATION", "stream capture isolation"},
    Text{906, "CUDA_ERROR_STREAM_CAPTURE_IMPLICIT",
         "operation would make the legacy stream depend on a capturing blocking stream"},
    Text{907, "CUDA_ERROR_CAPTURED_EVENT",
         "operation not permitted on an event last recorded in a capturing stream"},
    Text{908, "CUDA_ERROR_STREAM_CAPTURE_WRONG_THREAD", "stream capture wrong thread"},
    Text{909, "CUDA_ERROR_TIMEOUT", "timeout"},
    Text{910, "CUDA_ERROR_GRAPH_EXEC_UPDATE_FAILURE", "graph exec update failure"},
    Text{911, "CUDA_ERROR_EXTERNAL_DEVICE", "external device"},
    Text{912, "CUDA_ERROR_INVALID_CLUSTER_SIZE", "invalid cluster size"},
    Text{913, "CUDA_ERROR_FUNCTION_NOT_LOADED", "function not loaded"},
    Text{914, "CUDA_ERROR_INVALID_RESOURCE_TYPE", "invalid resource type"},
    Text{915, "CUDA_ERROR_INVALID_RESOURCE_CONFIGURATION", "invalid resource configuration"},
    Text{916, "CUDA_ERROR_KEY_ROTATION", "key rotation"},
    Text{917, "CUDA_ERROR_STREAM_DETACHED", "stream detached"},
    Text{918, "CUDA_ERROR_GRAPH_RECAPTURE_FAILURE", "graph recapture failure"},
    Text{919, "CUDA_ERROR_FABRIC_NOT_READY", "fabric not ready"},
    Text{999, "CUDA_ERROR_UNKNOWN", "unknown error"},
};

CUresult find(CUresult code, const char** out, const char* Text::* part) {
  if (out == nullptr) return CUDA_ERROR_INVALID_VALUE;
  const auto* found = std::ranges::find(texts, code, &Text::code);
  *out = found == texts.end() ? nullptr : (*found).*part;
  return *out == nullptr ? CUDA_ERROR_INVALID_VALUE : CUDA_SUCCESS;
}

}  // namespace

STANDIN_API cuGetErrorName(CUresult error, const char** text) { return find(error, text, &Text::name); }
STANDIN_API cuGetErrorString(CUresult error, const char** text) { return find(error, text, &Text::words); }
