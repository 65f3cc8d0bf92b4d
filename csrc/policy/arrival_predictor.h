// Predicts how much should lie ready for sequences that nobody has announced yet.
#pragma once

#include <algorithm>
#include <cstdint>

namespace vmm {

/// A pure policy. It is told how many sequences came at once and how long their first steps were, expects the
/// most of that again, and forgets it slowly. It never expects fewer tokens than it was constructed with.
class ArrivalPredictor {
 public:
  explicit ArrivalPredictor(std::uint64_t tokens) : least_tokens_(tokens) {}

  /// An iteration was the first one of `sequences` sequences; afterwards the longest had `tokens` tokens.
  void first_step(std::uint64_t sequences, std::uint64_t tokens) {
    sequences_ = std::max(static_cast<double>(sequences), sequences_ * kept);
    tokens_ = std::max(static_cast<double>(tokens), tokens_ * kept);
  }
  /// One more than came at once, because the pager takes a while to replace the slots that were taken.
  std::uint64_t sequences() const { return static_cast<std::uint64_t>(sequences_ + 0.5) + 1; }
  std::uint64_t tokens() const { return std::max(least_tokens_, static_cast<std::uint64_t>(tokens_ + 0.5)); }

 private:
  static constexpr double kept = 63.0 / 64;

  const std::uint64_t least_tokens_;
  double sequences_ = 0;
  double tokens_ = 0;
};

}  // namespace vmm
