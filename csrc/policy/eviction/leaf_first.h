// Any policy, made to take the last block of a prefix first.
#pragma once

#include <memory>
#include <utility>

#include "policy/eviction/resident_tree.h"

namespace vmm {

/// A block is of use only behind all blocks before it. So where the policy chooses one that held blocks
/// follow, the last of these goes in its place.
class LeafFirst final : public EvictionPolicy {
 public:
  explicit LeafFirst(std::unique_ptr<EvictionPolicy> policy) : policy_(std::move(policy)) {}

  void access(UnitId unit, const UnitAccess& access) override {
    tree_.used(unit, access.parent);
    policy_->access(unit, access);
  }
  std::optional<UnitId> victim(Nanoseconds now) override {
    const std::optional<UnitId> chosen = policy_->victim(now);
    if (!chosen) return chosen;
    return tree_.leaf_behind(*chosen);
  }
  void evicted(UnitId unit) override {
    tree_.left(unit);
    policy_->evicted(unit);
  }
  void forget(UnitId unit) override {
    tree_.left(unit);
    policy_->forget(unit);
  }
  bool holds(UnitId unit) const override { return policy_->holds(unit); }
  std::size_t ghosts() const override { return policy_->ghosts(); }

 private:
  const std::unique_ptr<EvictionPolicy> policy_;
  ResidentTree tree_;
};

}  // namespace vmm
