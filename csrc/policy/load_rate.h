// How fast something is read, so that it can be told how long more of it will take.
#pragma once

#include <optional>

#include "base/clock.h"
#include "base/types.h"

namespace vmm {

/// Counts the time in which any reads are under way, and what they read. What was long ago counts for less:
/// both are halved whenever that time reaches a second. Not thread-safe.
class LoadRate {
 public:
  void begun(Nanoseconds now) noexcept {
    if (under_way_++ == 0) since_ = now;
  }
  /// One of them has ended, and has read so much; nothing, where it failed.
  void ended(Nanoseconds now, Bytes size) noexcept {
    --under_way_;
    busy_ += now - since_;
    since_ = now;
    read_ += static_cast<double>(size.count);
    if (busy_ < std::chrono::seconds(1)) return;
    busy_ /= 2;
    read_ /= 2;
  }
  /// None before anything was read.
  std::optional<Nanoseconds> time_for(Bytes size) const noexcept {
    if (read_ <= 0) return std::nullopt;
    const double share = static_cast<double>(size.count) / read_;
    return Nanoseconds{static_cast<Nanoseconds::rep>(share * static_cast<double>(busy_.count()))};
  }

 private:
  std::uint32_t under_way_ = 0;
  Nanoseconds since_{};
  Nanoseconds busy_{};
  double read_ = 0;  // bytes
};

}  // namespace vmm
