// One device in simulated time: its driver, its pool, and two actors, the caller and the pager.
#pragma once

#include <memory>
#include <optional>
#include <random>

#include "driver/sim_driver.h"
#include "engine/pager.h"
#include "memory/pool.h"

namespace vmm {

struct WorldOptions {
  SimOptions driver{};
  Bytes budget{};
  Nanoseconds wake_latency{126'000};  // from asking the pager until it runs: the slowest of DESIGN §4
  Nanoseconds longest_wake{};         // if more: each time drawn between the two, from the driver's seed
  Bytes arena_bytes{};                // as in PoolOptions
};

/// One thread. The caller acts; the pager catches up with it whenever the caller's time passes.
class World {
 public:
  explicit World(const WorldOptions& options);
  ~World();
  World(const World&) = delete;
  World& operator=(const World&) = delete;

  SimDriver& driver() noexcept { return *driver_; }
  const std::shared_ptr<Pool>& pool() const noexcept { return pool_; }
  const std::shared_ptr<Pager>& pager() const noexcept { return pager_; }

  LocalBudget& budget() noexcept { return *budget_; }

  /// The caller's time.
  Nanoseconds now() const { return clock_->now(caller); }
  /// The caller does nothing until then; the pager goes on.
  void sleep_until(Nanoseconds then);
  /// The pager does all that it begins before the caller's time.
  void catch_up();
  /// The caller waits until the pager has nothing to do, or not within `soon`. False if that never comes.
  bool settle(Nanoseconds soon = Nanoseconds::max());
  /// Throws InvariantViolation if anybody ever waited without end, whoever swallowed it then.
  void check() const;

 private:
  static constexpr std::size_t caller = 0, pager_actor = 1;

  static constexpr std::uint64_t most_waits = 100'000;

  void wake(Nanoseconds at) { pager_at_ = std::min(pager_at_.value_or(at), at); }
  Nanoseconds wake_latency();
  void count_wait();

  const Nanoseconds wake_latency_, longest_wake_;
  std::mt19937_64 random_;
  std::uint64_t waits_ = 0;  // of either actor, since the caller last slept of its own will
  std::shared_ptr<SimClock> clock_;
  SimDriver* driver_;
  std::shared_ptr<LocalBudget> budget_;
  std::shared_ptr<Pool> pool_;
  std::shared_ptr<Pager> pager_;
  std::optional<Nanoseconds> pager_at_;  // when it is to run next
};

}  // namespace vmm
