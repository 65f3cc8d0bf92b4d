// How much is mapped in all reservations of a pool together, and how much of that may be had.
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <map>
#include <utility>
#include <vector>

#include "base/types.h"
#include "memory/virtual_page.h"

namespace vmm {

/// `ByLastUse` has a sum for each number of a last use. Not thread-safe: the pool's lock guards it.
template <class ByLastUse>
class MappedSums {
 public:
  MappedSums() = default;
  explicit MappedSums(ByLastUse by_last_use) : by_last_use_(std::move(by_last_use)) {}

  /// A Resident page comes in, or goes.
  void count(const VirtualPage& page, Bytes page_bytes, bool in) {
    add(all_, page_bytes, in);
    if (page.kept()) return add(kept_, page_bytes, in);
    add(reclaimable_[static_cast<std::size_t>(page.need)], page_bytes, in);
    if (page.last_use != 0) add(by_last_use_[page.last_use], page_bytes, in);
  }

  Bytes all() const noexcept { return all_; }
  Bytes kept() const noexcept { return kept_; }
  Bytes reclaimable() const noexcept { return all_ - kept_; }
  Bytes reclaimable(Need need) const { return reclaimable_.at(static_cast<std::size_t>(need)); }
  /// Of what is reclaimable, that whose last use has this number: see LastUses.
  Bytes last_used(std::uint16_t number) const { return by_last_use_[number]; }

  bool operator==(const MappedSums&) const = default;
  /// Whether two ways of counting have come to the same.
  template <class Counted>
  bool agrees_with(const MappedSums<Counted>& counted) const {
    const auto same = [&](const auto& each) { return by_last_use_[each.first] == each.second; };
    const auto some = [](Bytes sum) { return sum.count != 0; };
    return all_ == counted.all_ && kept_ == counted.kept_ && reclaimable_ == counted.reclaimable_ &&
           std::ranges::all_of(counted.by_last_use_, same) &&
           static_cast<std::size_t>(std::ranges::count_if(by_last_use_, some)) == counted.by_last_use_.size();
  }

 private:
  template <class Other>
  friend class MappedSums;

  static void add(Bytes& sum, Bytes size, bool in) { in ? sum += size : sum -= size; }

  Bytes all_;
  Bytes kept_;
  std::array<Bytes, reclaimable_needs.size()> reclaimable_;
  ByLastUse by_last_use_;
};

/// All numbers have their place, so that counting never allocates.
class MappedBytes : public MappedSums<std::vector<Bytes>> {
 public:
  MappedBytes() : MappedSums(std::vector<Bytes>(65536)) {}
};

/// Only what there is has a place: for whoever counts anew, and often. Pages only come in.
using MappedCensus = MappedSums<std::map<std::uint16_t, Bytes>>;

}  // namespace vmm
