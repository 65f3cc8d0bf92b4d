// How much a pool may create, and what it has created.
#pragma once

#include <algorithm>
#include <string>
#include <utility>

#include "base/clock.h"
#include "memory/budget.h"
#include "memory/device_limit.h"

namespace vmm {

/// Of the budget, but for what the device turned out not to have. Not thread-safe: the pool's lock guards it.
class Allowance {
 public:
  Allowance(Budget& budget, Budget::ListenerId taker, const Clock& clock)
      : budget_(budget), taker_(taker), clock_(clock) {}

  /// What this pool has taken: every page that is not absent.
  Bytes taken() const noexcept { return taken_; }
  Bytes peak() const noexcept { return peak_; }
  Bytes limit() const { return budget_.limit(); }
  /// What all owners of the budget have taken together.
  Bytes taken_by_all() const { return budget_.taken(); }
  /// What may still be created.
  Bytes left() const { return std::min(saturating_sub(limit(), taken_by_all()), device_left()); }
  Bytes device_left() const { return device_.left(taken_, clock_.now()); }
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
  void refused_by_device(std::string words) { device_.refused(taken_, std::move(words), clock_.now()); }
  void forget_device() { device_.forget(); }
  /// Until when what the device said is believed; empty: it is not.
  std::optional<Nanoseconds> device_until() const { return device_.until(clock_.now()); }
  /// Whether that time has come since it was refused.
  bool device_ends() { return device_.ends(clock_.now()); }
  /// What the device said, where it is that which limits.
  std::string device_words() const { return taken_by_all() + device_left() < limit() ? device_.words() : ""; }

 private:
  Budget& budget_;
  const Budget::ListenerId taker_;
  const Clock& clock_;
  DeviceLimit device_;
  Bytes taken_;
  Bytes peak_;
};

}  // namespace vmm
