// What a device turned out to have, where that is less than the budget.
#pragma once

#include <algorithm>
#include <limits>
#include <optional>
#include <string>
#include <utility>

#include "base/clock.h"
#include "base/types.h"

namespace vmm {

/// Others use the device too, and nobody tells when they let go: so what it refused is believed for a while
/// only. Not thread-safe: the pool's lock guards it.
class DeviceLimit {
 public:
  /// Long enough that a full device is not asked at every step, short beside the lives of other processes.
  static constexpr Nanoseconds believed{1'000'000'000};

  /// It would not give more than `held`, and said so in these words.
  void refused(Bytes held, std::string words, Nanoseconds now) {
    held_ = held;
    words_ = std::move(words);
    until_ = now + believed;
  }
  void forget() { until_ = {}; }
  /// Until when it is believed; empty: it is not.
  std::optional<Nanoseconds> until(Nanoseconds now) const {
    return now < until_ ? std::optional(until_) : std::nullopt;
  }
  /// Whether its time has come since it was refused.
  bool ends(Nanoseconds now) {
    const bool over = until_.count() != 0 && now >= until_;
    if (over) forget();
    return over;
  }

  /// Beside `held`, which is all that was created.
  Bytes left(Bytes held, Nanoseconds now) const {
    if (now >= until_) return {std::numeric_limits<std::int64_t>::max()};
    return saturating_sub(held_, held);
  }
  const std::string& words() const noexcept { return words_; }

 private:
  Bytes held_;
  std::string words_;
  Nanoseconds until_{0};
};

}  // namespace vmm
