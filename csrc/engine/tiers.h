// The tiers below the device: where copies of its pages are, the host's memory first and then a file.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "base/clock.h"
#include "driver/driver.h"
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

  Tiers() = default;
  virtual ~Tiers() = default;
  Tiers(const Tiers&) = delete;
  Tiers& operator=(const Tiers&) = delete;

  /// From now on these are tiers for pages of this size. `on_end` is called, by threads of the tiers, when
  /// transfers have ended. Calling it again with the same size does nothing. Throws InvalidArgument for
  /// another size, and what making the tiers throws.
  virtual void serve(Bytes page_bytes, const std::function<void()>& on_end) = 0;
  /// What is parked is copied at once, and not only where memory is short.
  virtual bool write_through() const noexcept = 0;

  /// At most so many places, all in one tier: the first that has any.
  virtual std::vector<TierPlace> take(std::uint32_t count) = 0;
  virtual void give_back(const TierPlace& place) = 0;
  virtual std::uint64_t free_places() const = 0;

  /// Begins to move a page. False where too much is under way; throws what TierStore::submit throws.
  virtual bool submit(TransferKind kind, const TierPlace& place, std::byte* memory, std::uint64_t tag) = 0;
  /// Collects what has ended, and returns how many.
  virtual std::size_t poll(std::span<Ended> out) = 0;

  /// None before serve().
  virtual std::uint32_t count() const noexcept = 0;
  /// "host" or "file".
  virtual const char* name(std::uint32_t tier) const = 0;
  virtual TierFigures figures(std::uint32_t tier) const = 0;

  /// What has not begun fails. Waits for the rest, for `patience` at most; true when nothing is left.
  virtual bool close(Nanoseconds patience) = 0;
};

/// The pool's driver, if its device copies pages to the host's memory because the CPU does not reach them;
/// else null. The pool lives as long as this.
std::shared_ptr<Driver> copying_device(const std::shared_ptr<Pool>& pool);
/// The tiers of a pool. Throws InvalidArgument for more of the host's memory than there is; serve() throws
/// what make_host_store() and make_slot_file() throw, too.
std::unique_ptr<Tiers> make_tiers(const std::shared_ptr<Pool>& pool, TiersOptions options,
                                  std::shared_ptr<SlotCalls> calls, std::shared_ptr<Clock> clock);

}  // namespace vmm
