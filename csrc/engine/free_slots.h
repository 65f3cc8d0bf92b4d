// The slots of a cache that nobody is in, in the order of how many tokens their pages hold.
//
// A free slot keeps its pages until memory is short, so the next sequence wants the slot whose pages fit it
// best. The order is kept, so that nobody has to look at all slots to find one.
#pragma once

#include <cstdint>
#include <optional>
#include <set>
#include <utility>
#include <vector>

namespace vmm {

/// Not thread-safe: the cache's lock guards it. Beyond the constructor nothing allocates.
class FreeSlots {
 public:
  /// All of `count` slots are free, and their pages hold nothing.
  explicit FreeSlots(std::uint32_t count) : places_(count), taken_(count) {
    for (std::uint32_t slot = 0; slot < count; ++slot)
      places_[slot] = order_.emplace_hint(order_.end(), 0, slot);
  }

  std::uint32_t count() const noexcept { return static_cast<std::uint32_t>(order_.size()); }
  /// How many tokens its pages held when somebody last looked while it was free.
  std::uint32_t tokens(std::uint32_t slot) const {
    return taken_[slot].empty() ? places_[slot]->first : taken_[slot].value().first;
  }
  void set_tokens(std::uint32_t slot, std::uint32_t tokens) {
    take(slot);
    put(slot, tokens);
  }
  void take(std::uint32_t slot) { taken_[slot] = order_.extract(places_[slot]); }
  void put(std::uint32_t slot, std::uint32_t tokens) {
    taken_[slot].value() = {tokens, slot};
    places_[slot] = order_.insert(std::move(taken_[slot])).position;
  }

  /// The slot with the fewest tokens that are enough for `tokens`, or else the one with the most: among those
  /// for which may_take(slot) holds, or among all where it holds for none. At least one must be free.
  template <class MayTake>
  std::uint32_t best_fit(std::uint32_t tokens, MayTake may_take) const {
    const auto enough = order_.lower_bound({tokens, 0});
    for (auto each = enough; each != order_.end(); ++each)
      if (may_take(each->second)) return each->second;
    std::optional<std::uint32_t> best;
    if (enough != order_.end()) best = enough->second;
    visit_down_from(enough, [&](std::uint32_t slot) {
      const bool taken = may_take(slot);
      if (taken || !best) best = slot;
      return !taken;
    });
    return *best;
  }

  /// Calls visit(slot) for each, from the most tokens down, until that returns false.
  template <class Visit>
  void from_largest(Visit visit) const {
    visit_down_from(order_.end(), visit);
  }

  /// Of bookkeeping, for each slot: a node of the set has three pointers and a colour.
  static constexpr std::size_t bytes_per_slot() {
    return sizeof(Order::value_type) + 4 * sizeof(void*) + sizeof(Order::iterator) + sizeof(Order::node_type);
  }

 private:
  using Order = std::set<std::pair<std::uint32_t, std::uint32_t>>;  // tokens, slot

  /// Does the same for those before `end`. Of several slots with as many tokens the first comes first.
  template <class Visit>
  void visit_down_from(Order::const_iterator end, Visit visit) const {
    while (end != order_.begin()) {
      const auto first = order_.lower_bound({std::prev(end)->first, 0});
      for (auto each = first; each != end; ++each)
        if (!visit(each->second)) return;
      end = first;
    }
  }

  Order order_;
  std::vector<Order::const_iterator> places_;  // by slot
  std::vector<Order::node_type> taken_;        // by slot: of those that are not free
};

}  // namespace vmm
