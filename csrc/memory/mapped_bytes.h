// How much is mapped in all reservations of a pool together, and how much of that may be had.
#pragma once

#include <array>
#include <cstdint>
#include <vector>

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
    if (page.last_use != 0) add(by_last_use_[page.last_use], page_bytes, in);
  }

  Bytes all() const noexcept { return all_; }
  Bytes kept() const noexcept { return kept_; }
  Bytes reclaimable() const noexcept { return all_ - kept_; }
  Bytes reclaimable(Need need) const { return reclaimable_.at(static_cast<std::size_t>(need)); }
  /// Of what is reclaimable, that whose last use has this number: see LastUses.
  Bytes last_used(std::uint16_t number) const { return by_last_use_[number]; }

  bool operator==(const MappedBytes&) const = default;

 private:
  static void add(Bytes& sum, Bytes size, bool in) { in ? sum += size : sum -= size; }

  Bytes all_;
  Bytes kept_;
  std::array<Bytes, reclaimable_needs.size()> reclaimable_;
  std::vector<Bytes> by_last_use_{65536};  // all of them, so that counting never allocates
};

}  // namespace vmm
