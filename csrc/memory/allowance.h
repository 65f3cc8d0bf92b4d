// How much a pool may create, and what it has created.
#pragma once

#include <algorithm>
#include <cstdint>
#include <limits>
#include <optional>
#include <string>
#include <utility>

#include "base/clock.h"
#include "memory/budget.h"

namespace vmm {

/// Of the budget, but for what the device turned out not to have. Not thread-safe: the pool's lock guards it.
class Allowance {
 public:
  /// What the device says is believed only for so long, because others use it too, and nobody tells when they
  /// let go. This is long enough that a full device is not asked at every step, and short beside the lives of
  /// other processes.
  static constexpr Nanoseconds device_believed{1'000'000'000};

  Allowance(Budget& budget, Budget::ListenerId taker, const Clock& clock)
      : budget_(budget), taker_(taker), clock_(clock) {}

  /// What this pool has taken: every page that is not absent.
  Bytes taken() const noexcept { return taken_; }
  Bytes peak() const noexcept { return peak_; }
  Bytes limit() const { return budget_.limit(); }
  /// What that may become, and tenants divide among them.
  Bytes maximum() const { return budget_.maximum(); }
  /// What all owners of the budget have taken together.
  Bytes taken_by_all() const { return budget_.taken(); }
  /// What may still be created.
  Bytes left() const { return std::min(saturating_sub(limit(), taken_by_all()), device_left()); }
  Bytes device_left() const {
    if (!device_until()) return {std::numeric_limits<std::int64_t>::max()};
    return saturating_sub(device_held_, taken_);
  }
  /// By how much a budget that was lowered is exceeded.
  Bytes exceeded() const { return saturating_sub(taken_by_all(), limit()); }

  /// All or nothing; see Budget::take.
  bool take(Bytes size, bool press) {
    if (!budget_.take(size, taker_, press)) return false;
    taken_ += size;
    peak_ = std::max(peak_, taken_);
    return true;
  }
  void give_back(Bytes size) noexcept {
    if (size.count == 0) return;  // the budget would tell of room that is not new
    taken_ -= size;
    budget_.give_back(size);
  }

  /// The device would not give more than was taken, and said so in these words.
  void refused_by_device(std::string words) {
    device_held_ = taken_;
    device_words_ = std::move(words);
    device_until_ = clock_.now() + device_believed;
  }
  void forget_device() { device_until_ = {}; }
  /// Until when what the device said is believed; empty: it is not.
  std::optional<Nanoseconds> device_until() const {
    return clock_.now() < device_until_ ? std::optional(device_until_) : std::nullopt;
  }
  /// How many times that time has come.
  std::uint64_t times_device_ended() {
    if (device_until_.count() != 0 && !device_until()) {
      forget_device();
      ++times_device_ended_;
    }
    return times_device_ended_;
  }
  /// What the device said, where it is that which limits.
  std::string device_words() const { return taken_by_all() + device_left() < limit() ? device_words_ : ""; }

 private:
  Budget& budget_;
  const Budget::ListenerId taker_;
  const Clock& clock_;
  Bytes taken_;
  Bytes peak_;
  Bytes device_held_;  // when the device gave no more
  std::string device_words_;
  Nanoseconds device_until_{0};  // 0: it has not refused anything, or that is forgotten
  std::uint64_t times_device_ended_ = 0;
};

}  // namespace vmm
