#include "driver/cuda_calls.h"

#include <array>
#include <cstdio>

#include "base/undo.h"
#include "driver/cuda_results.h"

namespace vmm::cuda {
namespace {

std::string described(const Api& api, Result result) {
  const char* name = nullptr;
  const char* words = nullptr;
  if (api.cuGetErrorName(result, &name) != success || name == nullptr) name = "an unknown error";
  if (api.cuGetErrorString(result, &words) != success || words == nullptr) words = "no description";
  return std::string(name) + " (" + std::to_string(result) + "): " + words;
}

std::atomic<std::uint64_t> last_id{0};
thread_local std::uint64_t bound_to = 0;  // the id of the Calls that this thread is bound to

}  // namespace

std::string text(std::uint64_t value) {
  char out[2 + 16 + 1];
  const char* format = value >= 1u << 31 ? "0x%llx" : "%llu";
  std::snprintf(out, sizeof out, format, static_cast<unsigned long long>(value));
  return out;
}

std::string text(const void* value) {
  return text(static_cast<std::uint64_t>(reinterpret_cast<std::uintptr_t>(value)));
}

Calls::Calls(int ordinal, bool with_context) : api_(load()), ordinal_(ordinal), id_(++last_id) {
  const Result initialized = ask(api_.cuInit, 0u);
  if (initialized == not_initialized) throw Forked(used_before_fork);
  if (initialized != success) fail("cuInit", initialized, "0, ");
  int count = 0;
  (*this)("cuDeviceGetCount", api_.cuDeviceGetCount, &count);
  if (ordinal < 0 || ordinal >= count)
    throw InvalidArgument("device is cuda:" + std::to_string(ordinal) + "; this machine has " +
                          std::to_string(count) + " CUDA device(s)");
  (*this)("cuDeviceGet", api_.cuDeviceGet, &device_, ordinal);
  int supported = 0;
  (*this)("cuDeviceGetAttribute", api_.cuDeviceGetAttribute, &supported, attribute_vmm, device_);
  if (supported == 0) throw DriverError("this CUDA device does not support virtual memory management");
  if (with_context) (*this)("cuDevicePrimaryCtxRetain", api_.cuDevicePrimaryCtxRetain, &context_, device_);
}

Calls::~Calls() {
  if (context_ == nullptr || kept_) return;
  undo_or_leak([this] { (*this)("cuDevicePrimaryCtxRelease", api_.cuDevicePrimaryCtxRelease, device_); });
}

void Calls::bind_thread() const {
  int mode = capture_relaxed;
  (*this)("cuThreadExchangeStreamCaptureMode", api_.cuThreadExchangeStreamCaptureMode, &mode);
  (*this)("cuCtxSetCurrent", api_.cuCtxSetCurrent, context_);
  bound_to = id_;
}

bool Calls::is_bound() const noexcept { return bound_to == id_; }

void Calls::require_alive() const {
  if (const Result error = lost_.load())
    throw DeviceLost("the CUDA context was ended by " + described(api_, error) +
                     ": nothing on this device works any more; restart the process");
}

void Calls::fail(const char* name, Result result, std::string arguments) const {
  if (ends_context(result)) lost_ = result;
  if (!arguments.empty()) arguments.resize(arguments.size() - 2);  // without the last ", "
  const std::string what = std::string(name) + "(" + arguments + ") on cuda:" + std::to_string(ordinal_) +
                           ": " + described(api_, result);
  if (result == out_of_memory) throw DriverOutOfMemory(what);
  if (ends_context(result)) throw DeviceLost(what + ". The CUDA context is lost; restart the process");
  throw DriverError(what);
}

std::uint64_t free_bytes(const Calls& calls) {
  const Calls::Scope scope(calls);
  std::size_t free = 0, total = 0;
  calls("cuMemGetInfo", calls.api().cuMemGetInfo, &free, &total);
  return free;
}

std::uint64_t free_bytes(int ordinal) {
  const Calls device(ordinal, false);
  unsigned flags = 0;
  int active = 0;
  device("cuDevicePrimaryCtxGetState", device.api().cuDevicePrimaryCtxGetState, device.device(), &flags,
         &active);
  if (active != 0) return free_bytes(Calls(ordinal));
  std::size_t total = 0;
  device("cuDeviceTotalMem", device.api().cuDeviceTotalMem, &total, device.device());
  return total;
}

std::string name(const Calls& calls, Device device) {
  std::array<char, 256> out{};
  calls("cuDeviceGetName", calls.api().cuDeviceGetName, out.data(), static_cast<int>(out.size()), device);
  return out.data();
}

std::string name(int ordinal) {
  const Calls calls(ordinal, false);
  return name(calls, calls.device());
}

Calls::Relaxed::Relaxed(const Calls& calls) : calls_(calls), bound_(calls.is_bound()) {
  if (bound_) return;
  // The driver sets the mode of this thread only.
  calls("cuThreadExchangeStreamCaptureMode", calls.api_.cuThreadExchangeStreamCaptureMode, &mode_);
}

Calls::Relaxed::~Relaxed() {
  if (bound_) return;
  undo_or_leak([this] {
    calls_("cuThreadExchangeStreamCaptureMode", calls_.api_.cuThreadExchangeStreamCaptureMode, &mode_);
  });
}

Calls::Current::Current(const Calls& calls, Context context) : calls_(calls), context_(context) {
  Context current = nullptr;
  calls("cuCtxGetCurrent", calls.api_.cuCtxGetCurrent, &current);
  if (current == context) return;
  calls("cuCtxPushCurrent", calls.api_.cuCtxPushCurrent, context);
  pushed_ = true;
}

Calls::Current::~Current() {
  if (!pushed_) return;
  undo_or_leak([this] {
    Context current = nullptr;
    calls_("cuCtxGetCurrent", calls_.api_.cuCtxGetCurrent, &current);
    // A pop can report an error of earlier work although it has popped. A second attempt must not pop again.
    if (current == context_) calls_("cuCtxPopCurrent", calls_.api_.cuCtxPopCurrent, &current);
  });
}

Calls::Scope::Scope(const Calls& calls) : relaxed_(calls), bound_before_(bound_to) {
  if (calls.is_bound()) return;
  current_.emplace(calls, calls.context_);
  bound_to = calls.id_;
}

Calls::Scope::~Scope() { bound_to = bound_before_; }

}  // namespace vmm::cuda
