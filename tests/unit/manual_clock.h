// Time that a test owns.
#pragma once

#include <atomic>

#include "base/clock.h"

namespace vmm {

/// A clock that stands still until a test moves it. Whoever waits still waits in real time.
class ManualClock final : public Clock {
 public:
  Nanoseconds now() const noexcept override { return Nanoseconds{ns_.load()}; }
  void advance(Nanoseconds by) noexcept { ns_.fetch_add(by.count()); }

 private:
  std::atomic<Nanoseconds::rep> ns_{0};
};

}  // namespace vmm
