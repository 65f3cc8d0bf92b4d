// How libcuda is called: with the right context, without breaking the stream captures of other threads, and
// with errors that say what was called.
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

/// The calls to one device, in its primary context, which torch uses, too. Safe from any thread.
class Calls {
 public:
  /// Throws InvalidArgument for a device that is not there, and DriverError where CUDA cannot be used. The
  /// context is made where nobody has made it yet. Without the context only questions about the device can be
  /// asked.
  explicit Calls(int ordinal, bool with_context = true);
  ~Calls();
  Calls(const Calls&) = delete;
  Calls& operator=(const Calls&) = delete;

  /// While this exists, calls of this thread do not break a capture on another thread. On a bound thread it
  /// has nothing to do.
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

  /// While this exists, the context is current. Then the one is current again that was before.
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

  /// Does what Relaxed does, and makes our context current. Within it the thread counts as bound, so that a
  /// second one inside costs nothing.
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

  /// To be called once on a thread of ours on which nobody else calls CUDA. From then on the context is
  /// current there and no call breaks a capture, so that no single call has to care.
  void bind_thread() const;

  /// The context is not released any more, because work that is left behind needs it.
  void keep_context() noexcept { kept_ = true; }

  const Api& api() const noexcept { return api_; }
  int ordinal() const noexcept { return ordinal_; }
  Device device() const noexcept { return device_; }
  Context context() const noexcept { return context_; }

  /// Makes the call. Throws DriverOutOfMemory, InvalidArgument or DriverError, which say the call, its
  /// arguments and CUDA's own words. After an error that ends the context every call throws.
  template <class... Parameters, class... Arguments>
  void operator()(const char* name, Result (*function)(Parameters...), Arguments... arguments) const {
    require_alive();
    const Result result = function(static_cast<Parameters>(arguments)...);
    if (result != success) fail(name, result, (std::string() + ... + (text(arguments) + ", ")));
  }
  /// Makes the call and returns its result, which need not be an error.
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
  const std::uint64_t id_;  // no two objects ever have the same
  Device device_ = 0;
  Context context_ = nullptr;
  bool kept_ = false;
  mutable std::atomic<Result> lost_{success};  // the error that ended the context
};

/// How much of the device's memory is free now.
std::uint64_t free_bytes(const Calls& calls);
/// The same. Where nobody has the device's primary context, this returns all of its memory: CUDA tells what
/// is free only in a context, and making one takes time and memory. Throws what the constructor of Calls
/// throws.
std::uint64_t free_bytes(int ordinal);
/// The device's name. The second throws what the constructor of Calls throws, too.
std::string name(const Calls& calls, Device device);
std::string name(int ordinal);

}  // namespace vmm::cuda
