// Least frequently used first.
#pragma once

#include <set>
#include <unordered_map>
#include <utility>

#include "policy/eviction/eviction_policy.h"

namespace vmm {

/// Uses are counted while the unit is on the device and forgotten when it leaves; of those used equally often
/// the one used longest ago goes first. It has no parameter. (The in-cache LFU of L. Breslau et al., "Web
/// caching and Zipf-like distributions", INFOCOM 1999.)
class Lfu final : public EvictionPolicy {
 public:
  void access(UnitId unit, const UnitAccess&) override {
    Use& use = uses_[unit];
    order_.erase({use, unit});
    use = {use.first + 1, ++accesses_};
    order_.insert({use, unit});
  }
  std::optional<UnitId> victim(Nanoseconds) override {
    if (order_.empty()) return std::nullopt;
    return order_.begin()->second;
  }
  void evicted(UnitId unit) override { forget(unit); }
  void forget(UnitId unit) override {
    const auto found = uses_.find(unit);
    if (found == uses_.end()) return;
    order_.erase({found->second, unit});
    uses_.erase(found);
  }
  bool holds(UnitId unit) const override { return uses_.contains(unit); }

 private:
  using Use = std::pair<std::uint64_t, std::uint64_t>;  // how often, and which of all accesses was the last

  std::unordered_map<UnitId, Use> uses_;
  std::set<std::pair<Use, UnitId>> order_;
  std::uint64_t accesses_ = 0;
};

}  // namespace vmm
