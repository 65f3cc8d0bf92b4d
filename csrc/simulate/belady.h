// The best that an eviction policy can do, by knowing the future.
#pragma once

#include <cstdint>
#include <limits>
#include <set>
#include <span>
#include <unordered_map>
#include <utility>
#include <vector>

#include "policy/eviction/eviction_policy.h"

namespace vmm {

/// Evicts what is used again last. L. A. Belady, "A study of replacement algorithms for a virtual-storage
/// computer", IBM Systems Journal 5(2), 1966: with units of one size nothing misses less. It is told all
/// accesses in advance, so it serves to compare with, and nothing else.
class Belady final : public EvictionPolicy {
 public:
  /// The units of all accesses that will come, in order.
  explicit Belady(std::span<const UnitId> future) : next_(future.size(), never) {
    std::unordered_map<UnitId, std::size_t> seen;
    for (std::size_t i = future.size(); i-- > 0;) {
      const auto [found, first] = seen.emplace(future[i], i);
      if (!first) next_[i] = std::exchange(found->second, i);
    }
  }

  void access(UnitId unit, const UnitAccess&) override {
    evicted(unit);
    const std::size_t next = next_.at(accesses_++);
    order_.insert({next, unit});
    held_.emplace(unit, next);
  }
  std::optional<UnitId> victim(Nanoseconds) override {
    if (order_.empty()) return std::nullopt;
    return std::prev(order_.end())->second;
  }
  void evicted(UnitId unit) override {
    const auto found = held_.find(unit);
    if (found == held_.end()) return;
    order_.erase({found->second, unit});
    held_.erase(found);
  }
  void forget(UnitId unit) override { evicted(unit); }
  bool holds(UnitId unit) const override { return held_.contains(unit); }

 private:
  static constexpr std::size_t never = std::numeric_limits<std::size_t>::max();

  std::vector<std::size_t> next_;  // of each access: which is the next of the same unit
  std::size_t accesses_ = 0;
  std::set<std::pair<std::size_t, UnitId>> order_;
  std::unordered_map<UnitId, std::size_t> held_;
};

}  // namespace vmm
