// Time comes from a Clock, so that the simulator and the tests can own it.
#pragma once

#include <chrono>
#include <mutex>
#include <thread>

#include "base/lock.h"

namespace vmm {

using Nanoseconds = std::chrono::nanoseconds;

class Clock {
 public:
  virtual ~Clock() = default;
  /// Time since some fixed origin; never goes back. Safe from any thread.
  virtual Nanoseconds now() const noexcept = 0;
  /// Lets go of `lock` until `changed` is notified or so long has passed, or for less.
  virtual void wait(std::unique_lock<Mutex>& lock, Condition& changed, Nanoseconds at_most) {
    changed.wait_for(lock, at_most);
  }
  virtual void sleep(Nanoseconds time) { std::this_thread::sleep_for(time); }
};

class RealClock final : public Clock {
 public:
  Nanoseconds now() const noexcept override { return std::chrono::steady_clock::now().time_since_epoch(); }
};

}  // namespace vmm
