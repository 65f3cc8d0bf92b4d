// Letting go of the pool's lock: for a driver call, or to wait for something that comes by itself.
#pragma once

#include <chrono>
#include <string>

#include "memory/ground.h"

namespace vmm {

/// For its lifetime the lock is not held. What dies before the scope's end dies without it; the locals of the
/// scope around it die under it, also when an exception goes through.
class Unlocked {
 public:
  explicit Unlocked(std::unique_lock<Mutex>& lock) : lock_(lock) { lock_.unlock(); }
  ~Unlocked() { lock_.lock(); }
  Unlocked(const Unlocked&) = delete;
  Unlocked& operator=(const Unlocked&) = delete;

 private:
  std::unique_lock<Mutex>& lock_;
};

/// One wait, moment by moment: whoever waits looks again after each. In a debug build it is bounded, because
/// nothing that ends by itself takes as long as that.
class Wait {
 public:
  /// A fence completes without telling anybody, so nobody waits longer than this without looking.
  static constexpr Nanoseconds recheck = std::chrono::milliseconds(1);

  /// `ends` says what ends the wait.
  Wait(Ground& ground, const char* ends) : ground_(ground), ends_(ends), start_(ground.clock->now()) {}

  /// Lets go of the lock until pages have moved in the tables, or for `recheck`.
  void moment(std::unique_lock<Mutex>& lock) {
#ifndef NDEBUG
    if (ground_.clock->now() - start_ > std::chrono::seconds(60))
      throw InvariantViolation(std::string("waited a minute for this: ") + ends_);
#endif
    ground_.clock->wait(lock, ground_.changed, recheck);
  }

 private:
  Ground& ground_;
  [[maybe_unused]] const char* ends_;
  [[maybe_unused]] Nanoseconds start_;
};

}  // namespace vmm
