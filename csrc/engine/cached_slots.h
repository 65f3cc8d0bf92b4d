// The slots of a cache that nobody is in, and whose tokens a sequence to come may begin with.
#pragma once

#include <cstdint>
#include <set>
#include <utility>
#include <vector>

namespace vmm {

/// In the order of their last use. Not thread-safe: the cache's lock guards it.
class CachedSlots {
 public:
  explicit CachedSlots(std::uint32_t count) : uses_(count) {}

  std::uint32_t count() const noexcept { return static_cast<std::uint32_t>(order_.size()); }
  /// The slot, which may be here already, is used now.
  void use(std::uint32_t slot) {
    order_.erase({uses_[slot], slot});
    uses_[slot] = ++last_use_;
    order_.emplace(uses_[slot], slot);
  }
  void take(std::uint32_t slot) { order_.erase({uses_[slot], slot}); }
  /// Pairs of a use and a slot, the one used longest ago first.
  const std::set<std::pair<std::uint64_t, std::uint32_t>>& oldest_first() const noexcept { return order_; }
  /// Of bookkeeping, for each slot: a node of the set has three pointers and a colour.
  static constexpr std::size_t bytes_per_slot() {
    return 2 * sizeof(std::uint64_t) + sizeof(std::uint64_t) + 4 * sizeof(void*);
  }

 private:
  std::set<std::pair<std::uint64_t, std::uint32_t>> order_;
  std::vector<std::uint64_t> uses_;  // by slot
  std::uint64_t last_use_ = 0;
};

}  // namespace vmm
