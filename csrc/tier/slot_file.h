// A tier in a file, on a disk.
#pragma once

#include <functional>
#include <memory>
#include <string>

#include "base/clock.h"
#include "base/log.h"
#include "driver/driver.h"
#include "tier/slot_calls.h"
#include "tier/tier_store.h"

namespace vmm {

struct SlotFileOptions {
  std::string directory = {};
  Bytes capacity{};
  Bytes slot{};
  unsigned threads = 4;
  bool direct = true;  // past the page cache, where the file system can
  Nanoseconds patience = std::chrono::seconds(30);
  std::shared_ptr<Driver> device = {};  // whose the pages are, if not the CPU's
  std::function<void()> on_end = {};    // see TierStoreOptions
};

/// A store of capacity / slot slots in a file without a name, which is as long from the beginning and ends
/// with the process, however that ends; no two processes can have one together. Forked children do not have
/// it. Warns once where calls cannot go past the page cache, and where room cannot be set aside.
///
/// Throws InvalidArgument, naming the argument: a directory that is not there or not writable, a capacity
/// that holds no slot or for which the file system has no room. Throws DriverError for any other failure.
std::unique_ptr<TierStore> make_slot_file(const SlotFileOptions& options, std::shared_ptr<SlotCalls> calls,
                                          std::shared_ptr<Clock> clock, std::shared_ptr<Log> log);

}  // namespace vmm
