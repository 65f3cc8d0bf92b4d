// The tiers below the device: where copies of its pages are, the host's memory first and then a file.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "base/clock.h"
#include "base/lock.h"
#include "base/log.h"
#include "driver/driver.h"
#include "driver/slab_memory.h"
#include "tier/slot_calls.h"
#include "tier/tier_store.h"

namespace vmm {

class Pool;

struct TiersOptions {
  Bytes host{};                // 0: no tier in the host's memory
  std::string directory;       // of the file
  Bytes file{};                // 0: no tier in a file
  bool write_through = false;  // what is parked is copied at once, and not only where memory is short
  bool verify_host = false;    // also what a device copies, which costs the CPU two looks at each page
};

/// Where a copy is.
struct TierPlace {
  std::uint32_t tier = 0;
  TierSlot slot{};
};

/// Safe from any thread. No method waits for a tier but close().
class Tiers {
 public:
  struct Ended {
    std::uint64_t tag = 0;
    Outcome outcome = Outcome::done;
  };

  /// Where the pages are those of a `device`, it copies them from and to `memory`. Throws InvalidArgument for
  /// more of the host's memory than there is.
  Tiers(TiersOptions options, std::shared_ptr<Driver> device, std::shared_ptr<SlabMemory> memory,
        std::shared_ptr<SlotCalls> calls, std::shared_ptr<Clock> clock, std::shared_ptr<Log> log);

  /// From now on these are tiers for pages of this size. `on_end` is called, by threads of the tiers, when
  /// transfers have ended. Calling it again with the same size does nothing. Throws InvalidArgument for
  /// another size, and what make_host_store() and make_slot_file() throw.
  void serve(Bytes page_bytes, const std::function<void()>& on_end);
  bool write_through() const noexcept { return options_.write_through; }
  bool serves() const noexcept { return serves_.load(std::memory_order_acquire); }

  /// At most so many places, all in one tier: the first that has any.
  std::vector<TierPlace> take(std::uint32_t count);
  void give_back(const TierPlace& place) { stores_[place.tier]->give_back(place.slot); }
  std::uint64_t free_places() const;

  /// Begins to move a page. False where too much is under way; throws what TierStore::submit throws.
  bool submit(TransferKind kind, const TierPlace& place, std::byte* memory, std::uint64_t tag);
  /// Collects what has ended, and returns how many.
  std::size_t poll(std::span<Ended> out);

  std::uint32_t count() const noexcept { return static_cast<std::uint32_t>(stores().size()); }
  /// "host" or "file".
  const char* name(std::uint32_t tier) const { return names_.at(tier); }
  TierFigures figures(std::uint32_t tier) const { return stores_.at(tier)->figures(); }

  /// What has not begun fails. Waits for the rest, for `patience` at most; true when nothing is left.
  bool close(Nanoseconds patience);

 private:
  /// The fastest first; none before serve().
  std::span<const std::unique_ptr<TierStore>> stores() const noexcept {
    return serves() ? std::span(stores_) : std::span<const std::unique_ptr<TierStore>>{};
  }

  const TiersOptions options_;
  const std::shared_ptr<Driver> device_;
  const std::shared_ptr<SlabMemory> memory_;
  const std::shared_ptr<SlotCalls> calls_;
  const std::shared_ptr<Clock> clock_;
  const std::shared_ptr<Log> log_;
  Mutex serving_{LockRank::tiers};  // guards what follows until it serves; then that never changes
  Bytes page_bytes_;
  std::vector<std::unique_ptr<TierStore>> stores_;
  std::vector<const char*> names_;
  std::atomic<bool> serves_{false};
};

/// The pool's driver, if its device copies pages to the host's memory because the CPU does not reach them;
/// else null. The pool lives as long as this.
std::shared_ptr<Driver> copying_device(const std::shared_ptr<Pool>& pool);
/// The tiers of a pool.
std::unique_ptr<Tiers> make_tiers(const std::shared_ptr<Pool>& pool, TiersOptions options,
                                  std::shared_ptr<SlotCalls> calls, std::shared_ptr<Clock> clock);

}  // namespace vmm
