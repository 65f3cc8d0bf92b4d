// How far ahead of a growing sequence its pages must be asked for.
#pragma once

#include <algorithm>
#include <cstdint>

#include "base/clock.h"

namespace vmm {

/// Pure: told what was measured, it answers in iterations. As in vAttention (arXiv 2405.04437, §6.1) pages
/// are mapped while the iterations before compute; how many iterations that takes is not a constant here.
class GrowthPredictor {
 public:
  static constexpr std::uint64_t most = 256;

  /// An iteration begins.
  void iteration(Nanoseconds now) {
    if (iterations_++ != 0) {
      const Nanoseconds took = now - last_;
      interval_ = iterations_ == 2 ? took : interval_ + (took - interval_) / 8;
      delay_ -= delay_ / memory;
    }
    last_ = now;
  }
  /// So long it took, once, from asking for pages until they were mapped: waking, waiting, driver calls.
  /// Counts for at most a few times of what was known, so that one long interruption of the whole process
  /// does not have memory mapped for hundreds of tokens; where delays are long, the next ones say so.
  void delay(Nanoseconds took) {
    delay_ = std::max(delay_, std::min(took, most_growth * (delay_ + interval_)));
  }

  /// Pages that will be needed so many iterations from now must be asked for now.
  std::uint64_t horizon() const {
    if (interval_.count() <= 0) return 2;
    const auto iterations = static_cast<std::uint64_t>((delay_ + interval_ - Nanoseconds{1}) / interval_);
    return std::min(iterations + 1, most);
  }

 private:
  // Iterations until a delay is forgotten. On a busy machine the scheduler lets the pager wait long, but
  // seldom; at 64, it was forgotten before the next such wait, and of the pages 2 to 5 in 100 came late.
  static constexpr std::int64_t memory = 1024;
  static constexpr std::int64_t most_growth = 4;

  std::uint64_t iterations_ = 0;
  Nanoseconds last_{};
  Nanoseconds interval_{};  // a running mean
  Nanoseconds delay_{};     // the longest, forgotten slowly
};

}  // namespace vmm
