// A set of addresses, which is kept as ranges.
#pragma once

#include <algorithm>
#include <cstdint>
#include <iterator>
#include <map>

#include "base/types.h"

namespace vmm {

/// Not thread-safe: its owner's lock guards it.
class AddressRanges {
  using Ranges = std::map<std::uintptr_t, std::uintptr_t>;  // start → end, apart

 public:
  void add(Address start, Bytes size) {
    remove(start, size);
    ranges_[start.value] = start.value + size.count;
  }

  void remove(Address start, Bytes size) {
    const std::uintptr_t end = start.value + size.count;
    auto at = first_ending_after(start.value);
    while (at != ranges_.end() && at->first < end) {
      const auto [from, to] = *at;
      at = ranges_.erase(at);
      if (from < start.value) ranges_[from] = start.value;
      if (to > end) ranges_[end] = to;
    }
  }

  /// Cuts a range into pieces that lie in the set and pieces that do not, and calls visit(start, size,
  /// contained) for each of them, in order.
  template <class Visit>
  void for_each_piece(Address start, Bytes size, Visit visit) const {
    const std::uintptr_t end = start.value + size.count;
    std::uintptr_t at = start.value;
    for (auto range = first_ending_after(at); at < end; ++range) {
      const bool none = range == ranges_.end() || range->first >= end;
      const std::uintptr_t from = none ? end : std::max(at, range->first);
      if (from > at) visit(Address{at}, Bytes{from - at}, false);
      if (none) return;
      at = std::min(end, range->second);
      visit(Address{from}, Bytes{at - from}, true);
    }
  }

  std::size_t size() const { return ranges_.size(); }

 private:
  Ranges::const_iterator first_ending_after(std::uintptr_t value) const {
    const auto next = ranges_.upper_bound(value);
    return next != ranges_.begin() && std::prev(next)->second > value ? std::prev(next) : next;
  }

  Ranges ranges_;
};

}  // namespace vmm
