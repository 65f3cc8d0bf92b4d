// Calling libcuda: on the right context, harmless to other threads' stream captures, and with errors that say
// what was called.
#pragma once

#include <atomic>
#include <optional>
#include <string>
#include <utility>

#include "driver/cuda_api.h"

namespace vmm::cuda {

/// What a number or a pointer looks like in an error message.
std::string text(std::uint64_t value);
std::string text(const void* value);

/// One device's primary context, shared with torch. Safe from any thread.
class Calls {
 public:
  /// Throws InvalidArgument for a device that is not there, DriverError where CUDA cannot be used.
  /// Without its context, which is made where nobody has it yet, only the device can be asked.
  explicit Calls(int ordinal, bool with_context = true);
  ~Calls();
  Calls(const Calls&) = delete;
  Calls& operator=(const Calls&) = delete;

  /// For the time of a call: a capture on another thread is not broken by it. Nothing on a bound thread.
  class Relaxed {
   public:
    // Not inlined (here and below): the fault suite counts the places in our code that call libcuda.
    [[gnu::noinline]] explicit Relaxed(const Calls& calls);
    [[gnu::noinline]] ~Relaxed();
    Relaxed(const Relaxed&) = delete;
    Relaxed& operator=(const Relaxed&) = delete;

   private:
    const Calls& calls_;
    const bool bound_;
    int mode_ = capture_relaxed;  // then the thread's own
  };

  /// The context is current, if it was not; then the thread's own.
  class Current {
   public:
    [[gnu::noinline]] Current(const Calls& calls, Context context);
    [[gnu::noinline]] ~Current();
    Current(const Current&) = delete;
    Current& operator=(const Current&) = delete;

   private:
    const Calls& calls_;
    const Context context_;
    bool pushed_ = false;
  };

  /// As Relaxed, and our context is current. Within one the thread is bound, so that a second one costs
  /// nothing.
  class Scope {
   public:
    [[gnu::noinline]] explicit Scope(const Calls& calls);
    [[gnu::noinline]] ~Scope();
    Scope(const Scope&) = delete;
    Scope& operator=(const Scope&) = delete;

   private:
    Relaxed relaxed_;
    std::optional<Current> current_;
    std::uint64_t bound_before_ = 0;
  };

  /// Once on a thread of ours, on which nobody else calls CUDA: the context is current from then on, and no
  /// capture is broken, so that no call needs to see to it.
  void bind_thread() const;

  /// Work that is left behind needs the context: it is the process's from now on.
  void keep_context() noexcept { kept_ = true; }

  const Api& api() const noexcept { return api_; }
  int ordinal() const noexcept { return ordinal_; }
  Device device() const noexcept { return device_; }
  Context context() const noexcept { return context_; }

  /// Makes the call. Throws DriverOutOfMemory, InvalidArgument or DriverError with the call, its arguments
  /// and CUDA's own words. After an error that ends the context, everything throws.
  template <class... Parameters, class... Arguments>
  void operator()(const char* name, Result (*function)(Parameters...), Arguments... arguments) const {
    require_alive();
    const Result result = function(static_cast<Parameters>(arguments)...);
    if (result != success) fail(name, result, (std::string() + ... + (text(arguments) + ", ")));
  }
  /// For results that are no errors.
  template <class... Parameters, class... Arguments>
  Result ask(Result (*function)(Parameters...), Arguments... arguments) const {
    require_alive();
    return function(static_cast<Parameters>(arguments)...);
  }
  [[noreturn]] void fail(const char* name, Result result, std::string arguments) const;

 private:
  void require_alive() const;
  bool is_bound() const noexcept;

  Api api_;
  int ordinal_;
  const std::uint64_t id_;  // never one twice
  Device device_ = 0;
  Context context_ = nullptr;
  bool kept_ = false;
  mutable std::atomic<Result> lost_{success};  // the error that ended the context
};

/// Of the device's memory, now.
std::uint64_t free_bytes(const Calls& calls);
/// The same; where nobody has the device's primary context, all of its memory: what is free cannot be asked
/// without one, and making one takes memory and a while. Throws as the constructor of Calls.
std::uint64_t free_bytes(int ordinal);
/// Throws as the constructor of Calls.
std::string name(int ordinal);

}  // namespace vmm::cuda
