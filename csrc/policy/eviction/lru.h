// Least recently used first.
#pragma once

#include "policy/eviction/unit_queue.h"

namespace vmm {

/// The policy that every paged engine has, and the one that others are measured against. It has no parameter.
/// (Analysed by R. L. Mattson, J. Gecsei, D. R. Slutz and I. L. Traiger, "Evaluation techniques for storage
/// hierarchies", IBM Systems Journal 9(2), 1970.)
class Lru final : public EvictionPolicy {
 public:
  void access(UnitId unit, const UnitAccess& access) override {
    units_.take(unit);
    units_.push_back(unit, access.size);
  }
  std::optional<UnitId> victim(Nanoseconds) override {
    if (units_.empty()) return std::nullopt;
    return units_.front().unit;
  }
  void evicted(UnitId unit) override { units_.take(unit); }
  void forget(UnitId unit) override { units_.take(unit); }
  bool holds(UnitId unit) const override { return units_.contains(unit); }

 private:
  UnitQueue<> units_;
};

}  // namespace vmm
