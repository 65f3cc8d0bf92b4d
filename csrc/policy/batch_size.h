// How much the pager maps at once.
#pragma once

#include <algorithm>
#include <chrono>
#include <cstdint>

namespace vmm {

/// Pure: told how long batches took, it gives the size of one that takes about `wanted`: a caller who needs a
/// page of it waits for all of it, and each batch has costs of its own.
class BatchSize {
 public:
  static constexpr std::chrono::nanoseconds wanted{1'000'000};
  static constexpr std::uint64_t least = std::uint64_t{64} << 10, most = std::uint64_t{256} << 20;

  explicit BatchSize(std::uint64_t first_bytes) : bytes_(static_cast<double>(first_bytes)) {}

  std::uint64_t bytes() const noexcept { return static_cast<std::uint64_t>(bytes_); }
  /// A batch took so long; `whole`: as much was mapped as it may hold. What the clock cannot see is nothing.
  void took(std::chrono::nanoseconds time, bool whole) {
    if (time.count() <= 0 || (!whole && time <= wanted)) return;
    // By half or twice at most: one delay by others says little.
    const double change = static_cast<double>(wanted.count()) / static_cast<double>(time.count());
    bytes_ = std::clamp(bytes_ * std::clamp(change, 0.5, 2.0), static_cast<double>(least),
                        static_cast<double>(most));
  }

 private:
  double bytes_;
};

}  // namespace vmm
