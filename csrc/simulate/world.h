// One device in simulated time, with its driver, its pool, and two actors: the caller and the pager.
#pragma once

#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <random>
#include <utility>

#include "driver/sim_driver.h"
#include "engine/pager.h"
#include "memory/pool.h"

namespace vmm {

struct WorldOptions {
  SimOptions driver{};
  Bytes budget{};
  Nanoseconds wake_latency{126'000};  // from asking the pager until it runs: the slowest of DESIGN §4
  Nanoseconds longest_wake{};         // if this is more, each latency is drawn between the two, from the seed
  Bytes arena_bytes{};                // as in PoolOptions
  Nanoseconds idle_time = PagerOptions{}.idle_time;
};

/// For one thread. The caller acts, and the pager and what was set to an alarm catch up with it whenever the
/// caller's time passes.
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
  /// The caller does nothing until `then`, while the pager goes on.
  void sleep_until(Nanoseconds then);
  /// The pager does everything that it begins before the caller's present time.
  void catch_up();
  /// Calls `what` when it is that time, before the pager does anything that it begins later.
  void at(Nanoseconds then, std::function<void()> what) { alarms_.emplace(then, std::move(what)); }
  /// The caller waits until the pager has nothing to do within `soon`, and no alarm will ring. Returns false
  /// if that never comes.
  bool settle(Nanoseconds soon = Nanoseconds::max());
  /// Throws InvariantViolation if anybody has ever waited, or the pager worked, without end, even where that
  /// exception was caught.
  void check() const;

 private:
  static constexpr std::size_t caller = 0, pager_actor = 1, alarm_clock = 2, actors = 3;

  static constexpr std::uint64_t most_waits = 100'000;

  void wake(Nanoseconds at) { pager_at_ = std::min(pager_at_.value_or(at), at); }
  Nanoseconds wake_latency();
  void count_wait();
  bool poll_before(Nanoseconds until);
  bool ring_before(Nanoseconds until);

  const Nanoseconds wake_latency_, longest_wake_;
  std::mt19937_64 random_;
  std::uint64_t waits_ = 0;  // by either actor, and polls, since the caller last slept of its own accord
  std::shared_ptr<SimClock> clock_;
  SimDriver* driver_;
  std::shared_ptr<LocalBudget> budget_;
  std::shared_ptr<Pool> pool_;
  std::shared_ptr<Pager> pager_;
  std::optional<Nanoseconds> pager_at_;  // when the pager runs next
  std::multimap<Nanoseconds, std::function<void()>> alarms_;
};

}  // namespace vmm
