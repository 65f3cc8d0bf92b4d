#include "base/lock.h"

#ifdef VMM_CHECK_LOCKS

#include <array>
#include <bit>
#include <cstdio>
#include <cstdlib>

namespace vmm::locks {
namespace {

constexpr std::array names{"shares",       "engine",         "kv_cache",    "slots_owner",   "slots_ahead",
                           "keeping",      "range_ahead",    "epochs_poll", "epochs_record", "tiers",
                           "parking",      "slots_prepared", "rows",        "range",         "pool",
                           "slots_due",    "streams",        "epochs",      "budget",        "pool_wake",
                           "pager_inbox",  "pager_thread",   "tier_store",  "device_link",   "log",
                           "fault_driver", "checked_driver", "sim_driver",  "cuda_driver",   "host_driver",
                           "host_streams", "mapping_reserve"};
static_assert(names.size() == static_cast<std::size_t>(LockRank::count));

constexpr auto last_with_driver_calls = static_cast<unsigned>(LockRank::tiers);

/// Has a bit for each rank of which this thread holds a lock.
thread_local std::uint64_t held = 0;

/// Ends the process if this thread holds a lock of the rank `from` or later.
void require_none(unsigned from, const char* what, const char* which) noexcept {
  if (held >> from == 0) return;
  // An exception would not do: many callers catch those, and at best a log would tell of the mistake.
  std::fprintf(stderr, "vmm: %s%s while it holds the lock %s\n", what, which,
               names[static_cast<std::size_t>(std::bit_width(held)) - 1]);
  std::abort();
}

}  // namespace

void Ranked::take() const noexcept {
  const auto rank = static_cast<unsigned>(rank_);
  require_none(rank, "a thread takes the lock ", names[rank]);
  held |= std::uint64_t{1} << rank;
}

void Ranked::give() const noexcept { held &= ~(std::uint64_t{1} << static_cast<unsigned>(rank_)); }

void before_driver_call() noexcept {
  require_none(last_with_driver_calls + 1, "a thread calls the driver", "");
}

void before_gil() noexcept { require_none(0, "a thread waits for the GIL", ""); }

}  // namespace vmm::locks

#endif
