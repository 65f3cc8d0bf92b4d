// A tier in the host's memory.
#pragma once

#include <functional>
#include <memory>

#include "base/clock.h"
#include "base/log.h"
#include "driver/driver.h"
#include "driver/slab_memory.h"
#include "tier/memory_limits.h"
#include "tier/tier_store.h"

namespace vmm {

struct HostStoreOptions {
  Bytes capacity{};
  Bytes slot{};
  Bytes slab = 1_GiB;    // what is asked of the memory at a time, at least a slot
  unsigned threads = 1;  // on the machines measured a second one copies no faster
  // Where the pages are a device's: it copies, and two threads keep it busy, or both directions.
  std::shared_ptr<Driver> device = {};
  unsigned device_threads = 2;
  bool verify_device = false;  // the CPU reads what the device has copied out, and again before it copies in
  MemoryFiles files = {};
  std::function<void()> on_end = {};  // see TierStoreOptions
};

/// Throws InvalidArgument for more than the memory that the process could have now, with the figures.
void check_host_capacity(Bytes capacity, const SlabMemory& memory, const MemoryFiles& files = {});

/// A store of capacity / slot slots, in slabs that are all there from the beginning. Copies that
/// the CPU makes are checked as they are made (checked_copy.h); those of a device only if that is asked for.
/// Throws InvalidArgument for a capacity that holds no slot, or is more than the memory that the process
/// could have now, with the figures; and what the slabs throw.
std::unique_ptr<TierStore> make_host_store(const HostStoreOptions& options,
                                           const std::shared_ptr<SlabMemory>& memory,
                                           std::shared_ptr<Clock> clock, std::shared_ptr<Log> log);

}  // namespace vmm
