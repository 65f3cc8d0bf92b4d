// A pool over the driver under test, whose calls can be made to fail and whose events can be held back.
#pragma once

#include <functional>
#include <memory>
#include <utility>
#include <vector>

#include "driver_under_test.h"
#include "engine/growth.h"
#include "engine/pager.h"
#include "manual_clock.h"
#include "memory/pool.h"

namespace vmm {

/// Puts another driver around the one under test.
using WrapDriver = std::function<std::unique_ptr<Driver>(std::unique_ptr<Driver>, ManualClock&)>;

struct TestPool {
  explicit TestPool(Bytes budget_bytes, std::shared_ptr<LocalBudget> shared = nullptr,
                    const WrapDriver& wrap = {})
      : budget(shared ? shared : std::make_shared<LocalBudget>(budget_bytes)),
        clock(std::make_shared<ManualClock>()) {
    std::unique_ptr<Driver> driver = make_bare_driver();
    if (wrap) driver = wrap(std::move(driver), *clock);
    auto fault_driver = std::make_unique<FaultDriver>(std::move(driver));
    faults = fault_driver.get();
    PoolOptions options;
    options.arena_bytes = 8_GiB;  // small enough for ThreadSanitizer's address space
    pool = Pool::make(std::make_unique<CheckedDriver>(std::move(fault_driver)), budget, clock, options);
    pager = std::make_shared<Pager>(pool, PagerOptions{});
  }

  std::shared_ptr<Lease> reserve(Bytes extent, std::uint64_t extents = 1, std::uint32_t kind = 0,
                                 bool zeroed = false) {
    return pool->reserve(
        {.page_bytes = 64_KiB, .extent_bytes = extent, .extents = extents, .kind = {kind}, .zeroed = zeroed});
  }
  std::shared_ptr<Growth> grow(std::shared_ptr<Lease> lease, Bytes record) {
    const std::uint64_t extents = lease->extents();
    return Growth::make(pager, {{std::move(lease), 0, extents, record}});
  }
  /// Polls until nothing is left to do at once.
  void settle() {
    while (pager->poll(clock->now()).now) {
    }
  }

  std::shared_ptr<LocalBudget> budget;
  std::shared_ptr<ManualClock> clock;
  FaultDriver* faults;
  std::shared_ptr<Pool> pool;
  std::shared_ptr<Pager> pager;
};

inline unsigned char* bytes_at(const Lease& lease, Bytes offset) {
  return reinterpret_cast<unsigned char*>((lease.base() + offset).value);
}

inline MapResult map(Lease& lease, std::uint32_t first, std::uint64_t count, const MapOptions& options = {}) {
  const PageRange range{{first}, {count}};
  return lease.pool().map(lease.reservation(), std::span(&range, 1), options);
}

inline void retire(Lease& lease, std::uint32_t first, std::uint64_t count, Fence until) {
  const PageRange range{{first}, {count}};
  lease.pool().retire(lease.reservation(), std::span(&range, 1), std::move(until));
}

inline void retire(Lease& lease, std::uint32_t first, std::uint64_t count) {
  retire(lease, first, count, lease.pool().epochs().fence());
}

/// What windows have left may still be in use by all work until now.
inline void advance_slots(Slots& slots, std::span<const SlotLength> wanted) {
  slots.advance(wanted, slots.pool().epochs().fence());
}

/// What is given up may still be in use by all work until now.
inline void truncate(Slots& slots, std::uint32_t slot, Tokens to) {
  slots.truncate(slot, to, slots.pool().epochs().fence());
}

}  // namespace vmm
