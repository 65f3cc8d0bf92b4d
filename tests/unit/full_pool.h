// A pool whose memory its slots can use up.
#pragma once

#include <memory>
#include <vector>

#include "engine/slots.h"
#include "fixtures.h"

namespace vmm {

inline constexpr Bytes record{1'024};  // 64 tokens in a page of 64 KiB
inline constexpr std::uint32_t slot_count = 4;

/// Four slots that want more memory than there is, and how often their pager is woken.
struct Full : TestPool {
  explicit Full(std::shared_ptr<LocalBudget> shared = nullptr)
      : TestPool(1_MiB, std::move(shared)),  // 16 pages
        lease(reserve(1_MiB, slot_count)),
        slots(Slots::make(pager, {{lease, 0, 1, record}}, slot_count, {.look_ahead = false})) {
    pager->set_waker([this] { ++wakes; });
  }
  ~Full() {
    pager->set_waker([] {});
  }

  void advance(std::uint32_t slot, std::uint64_t tokens) {
    advance_slots(*slots, std::vector<SlotLength>{{slot, {tokens}}});
  }
  /// Pages of a slot that are mapped.
  std::uint64_t mapped(std::uint32_t slot) const {
    return Pool::Needs(*pool).resident(lease->reservation(), {{16 * slot}, {16}}).count;
  }
  std::uint64_t wakes_by(auto action) {
    const std::uint64_t before = wakes;
    action();
    return wakes - before;
  }

  std::uint64_t wakes = 0;
  std::shared_ptr<Lease> lease;
  std::shared_ptr<Slots> slots;
};

/// Whether the pager has nothing to do soon, but to look for what idles.
inline bool nothing_soon(const Full& test, const Pager::Next& next) {
  return !next.at || *next.at >= test.clock->now() + PagerOptions{}.idle_time / 2;
}

}  // namespace vmm
