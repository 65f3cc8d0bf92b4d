// Predicts how many iterations ahead the pages of a growing sequence must be asked for.
#pragma once

#include <algorithm>
#include <cstdint>

#include "base/clock.h"

namespace vmm {

/// A pure policy. It is told what was measured, and answers in iterations. As in vAttention (arXiv
/// 2405.04437, §6.1), pages are mapped while earlier iterations compute. How many iterations that takes is
/// measured here, not a constant.
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
  /// It took this long, once, from asking for pages until they were mapped: waking the pager, waiting for it,
  /// and its driver calls. One delay counts for at most a few times the longest known one. So one long
  /// interruption of the whole process does not have memory mapped for hundreds of tokens; where delays
  /// really are that long, the next ones say so again.
  void delay(Nanoseconds took) {
    delay_ = std::max(delay_, std::min(took, most_growth * (delay_ + interval_)));
  }

  /// Pages that will be needed within this many iterations must be asked for now.
  std::uint64_t horizon() const {
    if (interval_.count() <= 0) return 2;
    const auto iterations = static_cast<std::uint64_t>((delay_ + interval_ - Nanoseconds{1}) / interval_);
    return std::min(iterations + 1, most);
  }

 private:
  // A delay is forgotten after about so many iterations. On a busy machine the scheduler lets the pager wait
  // long, but seldom. When this was 64, a delay was forgotten before the next one, and 2–5 % of the pages
  // came late.
  static constexpr std::int64_t memory = 1024;
  static constexpr std::int64_t most_growth = 4;

  std::uint64_t iterations_ = 0;
  Nanoseconds last_{};
  Nanoseconds interval_{};  // a running mean
  Nanoseconds delay_{};     // the longest one, which is forgotten slowly
};

}  // namespace vmm
