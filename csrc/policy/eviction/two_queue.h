// 2Q: what is used once passes through a queue of its own, and does not disturb what is used again.
#pragma once

#include "policy/eviction/unit_queue.h"

namespace vmm {

/// T. Johnson and D. Shasha, "2Q: a low overhead high performance buffer management replacement algorithm",
/// VLDB 1994, the full version. Units come into a FIFO (A1in), leave it as ghosts (A1out), and only one that
/// is used as a ghost comes among those that are kept by LRU (Am). Uses within the FIFO count as one.
class TwoQueue final : public EvictionPolicy {
 public:
  /// What the paper recommends (its section 3): a quarter of the memory for the FIFO, and ghosts of units
  /// that would fill half of it.
  static constexpr std::uint64_t in_divisor = 4;
  static constexpr std::uint64_t out_divisor = 2;

  explicit TwoQueue(Bytes capacity) : most_in_(capacity / in_divisor), out_(capacity / out_divisor) {}

  void access(UnitId unit, const UnitAccess& access) override {
    if (in_.contains(unit)) return in_.resize(unit, access.size);
    if (main_.take(unit) || out_.take(unit))
      main_.push_back(unit, access.size);
    else
      in_.push_back(unit, access.size);
  }
  std::optional<UnitId> victim(Nanoseconds) override {
    if (in_.empty() && main_.empty()) return std::nullopt;
    const bool from_in = main_.empty() || (!in_.empty() && in_.bytes() > most_in_);
    return from_in ? in_.front().unit : main_.front().unit;
  }
  void evicted(UnitId unit) override {
    if (const auto taken = in_.take(unit)) out_.remember(unit, taken->size);
    main_.take(unit);
  }
  void forget(UnitId unit) override {
    in_.take(unit);
    main_.take(unit);
    out_.take(unit);
  }
  bool holds(UnitId unit) const override { return in_.contains(unit) || main_.contains(unit); }
  std::size_t ghosts() const override { return out_.count(); }

 private:
  const Bytes most_in_;
  UnitQueue<> in_;
  UnitQueue<> main_;
  GhostQueue<> out_;
};

}  // namespace vmm
