// 2Q: what is used once passes through a queue of its own, and does not disturb what is used again.
#pragma once

#include "policy/eviction/two_stage.h"

namespace vmm {

/// T. Johnson and D. Shasha, "2Q: a low overhead high performance buffer management replacement algorithm",
/// VLDB 1994, the full version. Units come into a FIFO (A1in), leave it as ghosts (A1out), and only one that
/// is used as a ghost comes among those that are kept by LRU (Am). Uses within the FIFO count as one.
class TwoQueue final : public TwoStage<> {
 public:
  /// What the paper recommends (its section 3): a quarter of the memory for the FIFO, and ghosts of units
  /// that would fill half of it.
  static constexpr std::uint64_t in_divisor = 4;
  static constexpr std::uint64_t out_divisor = 2;

  explicit TwoQueue(Bytes capacity) : TwoStage(capacity / in_divisor, capacity / out_divisor) {}

  void access(UnitId unit, const UnitAccess& access) override {
    if (new_.contains(unit)) return new_.resize(unit, access.size);
    if (main_.take(unit) || ghosts_.take(unit))
      main_.push_back(unit, access.size);
    else
      new_.push_back(unit, access.size);
  }
  std::optional<UnitId> victim(Nanoseconds) override {
    if (empty()) return std::nullopt;
    return (next_is_new() ? new_ : main_).front().unit;
  }
};

}  // namespace vmm
