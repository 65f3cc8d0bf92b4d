// Copies, fills and host functions: what a stream does.
#include <cstring>
#include <vector>

#include "api.h"
#include "call.h"
#include "standin.h"

using namespace standin;

namespace {

void* at(Address address) { return reinterpret_cast<void*>(address); }  // NOLINT: that is what addresses are

struct Ends {
  bool device_to = true;  // the address must be one that a GPU can reach
  bool device_from = true;
};

OperationPtr operation(std::string what, std::vector<Touch> touches) {
  auto made = std::make_shared<Operation>();
  made->what = std::move(what);
  made->touches = std::move(touches);
  return made;
}

struct Copy {
  Address to;
  Address from;
  Size size;
  Ends ends;
  bool blocking;  // cuMemcpy..., not cuMemcpy...Async
};

/// Memory that the driver does not know is read before the call returns; memory that it does, when the copy
/// runs. Blocking copies from device to device do not wait, nor do those whose source has been read.
CUresult copy(Call& call, const Copy& what, CUstream handle) {
  State& s = call.s;
  StreamPtr stream;
  if (const CUresult refused = call.find(handle, stream)) return refused;
  if (what.size == 0) return CUDA_SUCCESS;
  const int device = stream->context->device;
  const Located to = s.ledger.locate(what.to, what.size, device, true);
  const Located from = s.ledger.locate(what.from, what.size, device, false);
  if (to.result != CUDA_SUCCESS || from.result != CUDA_SUCCESS) return CUDA_ERROR_INVALID_VALUE;
  if (what.ends.device_to && to.place == Place::pageable) return CUDA_ERROR_INVALID_VALUE;
  if (what.ends.device_from && from.place == Place::pageable) return CUDA_ERROR_INVALID_VALUE;

  const bool capturing = stream->capture != 0;
  bool wait = to.place == Place::pageable || (what.blocking && to.place == Place::pinned) ||
              (what.blocking && from.place == Place::pinned);
  auto copying = operation(std::string(call.name) + " of " + std::to_string(what.size) + " bytes",
                           {{what.to, what.size, true, {}}, {what.from, what.size, false, {}}});
  copying->work = [what]() { std::memmove(at(what.to), at(what.from), what.size); };
  if (from.place == Place::pageable && !capturing && !wait) {
    if (s.chance(2)) {
      wait = true;  // staged only after the stream got there
    } else {
      const auto* bytes = static_cast<const char*>(at(what.from));
      auto staged = std::make_shared<std::vector<char>>(bytes, bytes + what.size);
      copying->touches.pop_back();
      copying->work = [what, staged]() { std::memcpy(at(what.to), staged->data(), what.size); };
    }
  }
  if (const CUresult refused = submit_touching(call, stream, copying)) return refused;
  if (wait && !capturing) s.work.finish(copying, call.lock);
  return CUDA_SUCCESS;
}

template <class Value>
CUresult fill(const char* name, bool blocking, Address address, Value value, Size count, CUstream handle) {
  return enter(name, needs_context | (blocking ? unsafe : plain), [&](Call& call) -> CUresult {
    StreamPtr stream;
    if (const CUresult refused = call.find(handle, stream)) return refused;
    if (stream->context->device != call.context->device) return CUDA_ERROR_INVALID_HANDLE;
    Size size = 0;
    if (address % sizeof(Value) != 0 || __builtin_mul_overflow(count, sizeof(Value), &size))
      return CUDA_ERROR_INVALID_VALUE;
    if (size == 0) return CUDA_SUCCESS;
    if (call.s.ledger.locate(address, size, call.context->device, true).place == Place::pageable)
      return CUDA_ERROR_INVALID_VALUE;
    auto filling =
        operation(std::string(name) + " of " + std::to_string(size) + " bytes", {{address, size, true, {}}});
    filling->work = [address, value, count]() {
      std::fill_n(static_cast<Value*>(at(address)), count, value);
    };
    return submit_touching(call, stream, filling);  // also the blocking ones are late: documented
  });
}

CUresult copy_call(const char* name, const Copy& what, CUstream stream) {
  return enter(name, needs_context | (what.blocking ? unsafe : plain),
               [&](Call& call) { return copy(call, what, stream); });
}

}  // namespace

STANDIN_API cuMemcpy(CUdeviceptr to, CUdeviceptr from, std::size_t size) {
  return copy_call("cuMemcpy", {to, from, size, {false, false}, true}, nullptr);
}
STANDIN_API cuMemcpyAsync(CUdeviceptr to, CUdeviceptr from, std::size_t size, CUstream stream) {
  return copy_call("cuMemcpyAsync", {to, from, size, {false, false}, false}, stream);
}
STANDIN_API cuMemcpyHtoD_v2(CUdeviceptr to, const void* from, std::size_t size) {
  return copy_call("cuMemcpyHtoD", {to, reinterpret_cast<Address>(from), size, {true, false}, true}, nullptr);
}
STANDIN_API cuMemcpyDtoH_v2(void* to, CUdeviceptr from, std::size_t size) {
  return copy_call("cuMemcpyDtoH", {reinterpret_cast<Address>(to), from, size, {false, true}, true}, nullptr);
}
STANDIN_API cuMemcpyDtoD_v2(CUdeviceptr to, CUdeviceptr from, std::size_t size) {
  return copy_call("cuMemcpyDtoD", {to, from, size, {true, true}, true}, nullptr);
}
STANDIN_API cuMemcpyHtoDAsync_v2(CUdeviceptr to, const void* from, std::size_t size, CUstream stream) {
  return copy_call("cuMemcpyHtoDAsync", {to, reinterpret_cast<Address>(from), size, {true, false}, false},
                   stream);
}
STANDIN_API cuMemcpyDtoHAsync_v2(void* to, CUdeviceptr from, std::size_t size, CUstream stream) {
  return copy_call("cuMemcpyDtoHAsync", {reinterpret_cast<Address>(to), from, size, {false, true}, false},
                   stream);
}
STANDIN_API cuMemcpyDtoDAsync_v2(CUdeviceptr to, CUdeviceptr from, std::size_t size, CUstream stream) {
  return copy_call("cuMemcpyDtoDAsync", {to, from, size, {true, true}, false}, stream);
}

STANDIN_API cuMemsetD8_v2(CUdeviceptr address, unsigned char value, std::size_t count) {
  return fill("cuMemsetD8", true, address, value, count, nullptr);
}
STANDIN_API cuMemsetD32_v2(CUdeviceptr address, unsigned value, std::size_t count) {
  return fill("cuMemsetD32", true, address, value, count, nullptr);
}
STANDIN_API cuMemsetD8Async(CUdeviceptr address, unsigned char value, std::size_t count, CUstream stream) {
  return fill("cuMemsetD8Async", false, address, value, count, stream);
}
STANDIN_API cuMemsetD16Async(CUdeviceptr address, unsigned short value, std::size_t count, CUstream stream) {
  return fill("cuMemsetD16Async", false, address, value, count, stream);
}
STANDIN_API cuMemsetD32Async(CUdeviceptr address, unsigned value, std::size_t count, CUstream stream) {
  return fill("cuMemsetD32Async", false, address, value, count, stream);
}

STANDIN_API cuLaunchHostFunc(CUstream handle, CUhostFn function, void* data) {
  return enter("cuLaunchHostFunc", plain, [&](Call& call) -> CUresult {
    StreamPtr stream;
    if (const CUresult refused = call.find(handle, stream)) return refused;
    if (function == nullptr) return CUDA_ERROR_INVALID_VALUE;
    auto work = operation("a host function", {});
    work->host_code = true;
    work->host_knows = true;
    work->work = [function, data]() { function(data); };
    return submit(call, stream, work);
  });
}

extern "C" __attribute__((visibility("default"))) int standin_launch(void* handle, void (*fn)(void*),
                                                                     void* arg, const standin_range* reads,
                                                                     std::size_t n_reads,
                                                                     const standin_range* writes,
                                                                     std::size_t n_writes) {
  return enter("standin_launch", needs_context | cannot_fail, [&](Call& call) -> CUresult {
    if (call.s.sticky != CUDA_SUCCESS) return call.s.sticky;
    StreamPtr stream;
    if (const CUresult refused = call.find(static_cast<CUstream>(handle), stream)) return refused;
    if (stream->context->device != call.context->device) return CUDA_ERROR_INVALID_HANDLE;
    auto work = operation("a kernel", {});
    for (std::size_t i = 0; i < n_reads; ++i)
      work->touches.push_back({reads[i].start, reads[i].size, false, {}});
    for (std::size_t i = 0; i < n_writes; ++i)
      work->touches.push_back({writes[i].start, writes[i].size, true, {}});
    work->host_code = true;
    work->hangs = call.s.settings.hang;
    if (fn != nullptr) work->work = [fn, arg]() { fn(arg); };
    // What a captured kernel touches is looked at when the graph is launched.
    const CUresult result =
        stream->capture != 0 ? submit(call, stream, work) : submit_touching(call, stream, work);
    if (result != CUDA_ERROR_INVALID_VALUE) return result;
    return call.undefined("a kernel that touches what is not mapped or not accessible",
                          CUDA_ERROR_ILLEGAL_ADDRESS);
  });
}
