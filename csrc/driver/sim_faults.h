// What goes wrong in a simulated driver, and when. A seed decides it, so that it can be repeated.
#pragma once

#include <cstdint>
#include <random>

#include "base/clock.h"

namespace vmm {

struct SimFaultOptions {
  std::uint64_t seed = 0;
  std::uint32_t failures_per_million = 0;  // of the calls that can fail
  std::uint32_t delays_per_million = 0;    // of all calls
  Nanoseconds longest_delay{0};
};

/// One thread at a time may use this.
class SimFaults {
 public:
  explicit SimFaults(const SimFaultOptions& options) : options_(options), random_(options.seed) {}

  bool fails() {
    const bool now = drawn(options_.failures_per_million);
    failures_ += now;
    return now;
  }
  Nanoseconds delay() {
    if (!drawn(options_.delays_per_million) || options_.longest_delay.count() <= 0) return {};
    return Nanoseconds{1 + static_cast<Nanoseconds::rep>(
                               random_() % static_cast<std::uint64_t>(options_.longest_delay.count()))};
  }
  std::uint64_t failures() const { return failures_; }
  void stop() { stopped_ = true; }
  void go_on() { stopped_ = false; }

 private:
  bool drawn(std::uint32_t per_million) {
    return !stopped_ && per_million != 0 && random_() % 1'000'000 < per_million;
  }

  SimFaultOptions options_;
  std::mt19937_64 random_;
  std::uint64_t failures_ = 0;
  bool stopped_ = false;
};

}  // namespace vmm
