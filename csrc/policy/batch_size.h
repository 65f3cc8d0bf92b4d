// Chooses how many bytes the pager maps at once.
#pragma once

#include <algorithm>
#include <chrono>
#include <cstdint>

namespace vmm {

/// A pure policy. It is told how long batches took, and gives the size of a batch that takes about `wanted`.
/// A larger batch would hold up a caller who needs one page of it, because that caller waits for the whole
/// batch; a smaller one would pay the fixed costs of a batch too often.
class BatchSize {
 public:
  static constexpr std::chrono::nanoseconds wanted{1'000'000};
  static constexpr std::uint64_t least = std::uint64_t{64} << 10, most = std::uint64_t{256} << 20;

  explicit BatchSize(std::uint64_t first_bytes) : bytes_(static_cast<double>(first_bytes)) {}

  std::uint64_t bytes() const noexcept { return static_cast<std::uint64_t>(bytes_); }
  /// A batch took `time`. `whole` says that it was as large as a batch may be. A time that the clock cannot
  /// measure says nothing and is ignored.
  void took(std::chrono::nanoseconds time, bool whole) {
    if (time.count() <= 0 || (!whole && time <= wanted)) return;
    // One measurement changes the size by a factor of two at most: somebody else may have caused the delay.
    const double change = static_cast<double>(wanted.count()) / static_cast<double>(time.count());
    bytes_ = std::clamp(bytes_ * std::clamp(change, 0.5, 2.0), static_cast<double>(least),
                        static_cast<double>(most));
  }

 private:
  double bytes_;
};

}  // namespace vmm
