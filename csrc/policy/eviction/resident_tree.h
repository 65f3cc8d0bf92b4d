// Which held units follow which in prompts.
#pragma once

#include <optional>
#include <unordered_map>

#include "policy/eviction/unit_queue.h"

namespace vmm {

/// Of every unit that is held: its parent, and of every parent, held or not: the held units that follow it,
/// the one used longest ago first. A unit with none of these is a leaf.
class ResidentTree {
 public:
  /// The unit was used. What it was told of its parent the first time stays.
  void used(UnitId unit, std::optional<UnitId> parent) {
    const auto [found, added] = parents_.emplace(unit, parent);
    if (!found->second) return;
    UnitQueue<>& siblings = children_[*found->second];
    if (added)
      siblings.push_back(unit, {});
    else
      siblings.move_to_back(unit);
  }
  /// The unit is not held any more. Returns its parent.
  std::optional<UnitId> left(UnitId unit) {
    const auto found = parents_.find(unit);
    if (found == parents_.end()) return std::nullopt;
    const std::optional<UnitId> parent = found->second;
    parents_.erase(found);
    if (!parent) return parent;
    const auto siblings = children_.find(*parent);
    siblings->second.take(unit);
    if (siblings->second.empty()) children_.erase(siblings);
    return parent;
  }
  bool holds(UnitId unit) const { return parents_.contains(unit); }
  std::size_t count() const { return parents_.size(); }
  bool is_leaf(UnitId unit) const { return !children_.contains(unit); }
  /// The unit itself if it is a leaf; else the one behind it that is reached by taking, at every fork, the
  /// branch used longest ago.
  UnitId leaf_behind(UnitId unit) const {
    for (auto found = children_.find(unit); found != children_.end(); found = children_.find(unit))
      unit = found->second.front().unit;
    return unit;
  }

 private:
  std::unordered_map<UnitId, std::optional<UnitId>> parents_;
  std::unordered_map<UnitId, UnitQueue<>> children_;
};

}  // namespace vmm
