// How much is mapped in all reservations of a pool together, and how much of that may be had.
#pragma once

#include <array>
#include <cstdint>
#include <map>

#include "base/types.h"
#include "memory/virtual_page.h"

namespace vmm {

/// Not thread-safe: the pool's lock guards it.
class MappedBytes {
 public:
  /// A Resident page comes in, or goes.
  void count(const VirtualPage& page, Bytes page_bytes, bool in) {
    add(all_, page_bytes, in);
    if (page.kept()) return add(kept_, page_bytes, in);
    add(reclaimable_[static_cast<std::size_t>(page.need)], page_bytes, in);
    if (page.last_use == 0) return;
    const auto found = by_last_use_.try_emplace(page.last_use).first;
    add(found->second, page_bytes, in);
    if (found->second.count == 0) by_last_use_.erase(found);
  }

  Bytes all() const noexcept { return all_; }
  Bytes kept() const noexcept { return kept_; }
  Bytes reclaimable() const noexcept { return all_ - kept_; }
  Bytes reclaimable(Need need) const { return reclaimable_.at(static_cast<std::size_t>(need)); }
  /// Of what is reclaimable, that whose last use has this number: see LastUses.
  Bytes last_used(std::uint16_t number) const {
    const auto found = by_last_use_.find(number);
    return found == by_last_use_.end() ? Bytes{} : found->second;
  }

  bool operator==(const MappedBytes&) const = default;

 private:
  static void add(Bytes& sum, Bytes size, bool in) { in ? sum += size : sum -= size; }

  Bytes all_;
  Bytes kept_;
  std::array<Bytes, 3> reclaimable_;  // by need
  std::map<std::uint16_t, Bytes> by_last_use_;
};

}  // namespace vmm
