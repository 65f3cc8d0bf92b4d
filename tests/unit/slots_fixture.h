// Three slots in two leases: two wide extents and a narrow one each.
#pragma once

#include <array>
#include <memory>
#include <vector>

#include "engine/slots.h"
#include "fixtures.h"

namespace vmm {

constexpr Bytes record{3'000};  // 21.8 tokens in a page of 64 KiB: they straddle

struct TestSlots : TestPool {
  explicit TestSlots(Bytes budget_bytes, const SlotsOptions& options = {.look_ahead = false})
      : TestPool(budget_bytes),
        wide(reserve(1_MiB, 6)),
        narrow(reserve(1_MiB, 3)),
        slots(Slots::make(pager, {{wide, 0, 2, record}, {narrow, 0, 1, {256}}}, 3, options)) {}

  void advance(std::vector<SlotLength> wanted) { advance_slots(*slots, wanted); }
  /// Of a slot: pages of each wide extent, and of the narrow one.
  std::array<std::uint64_t, 3> mapped(std::uint32_t slot) const {
    return {pages(*wide, 2 * slot), pages(*wide, 2 * slot + 1), pages(*narrow, slot)};
  }
  static std::uint64_t pages(const Lease& lease, std::uint32_t extent) {
    std::uint64_t count = 0;
    for (std::uint32_t i = 0; i < 16; ++i)
      count += lease.reservation().table[{16 * extent + i}].state == VirtualState::resident;
    return count;
  }

  std::shared_ptr<Lease> wide, narrow;
  std::shared_ptr<Slots> slots;
};

using Mapped = std::array<std::uint64_t, 3>;

}  // namespace vmm
