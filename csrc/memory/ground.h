// What all rooms of a pool share: the driver, the budget, the clock, the lock.
#pragma once

#include <atomic>
#include <memory>

#include "base/clock.h"
#include "base/counters.h"
#include "base/error.h"
#include "base/fork.h"
#include "base/lock.h"
#include "base/log.h"
#include "memory/budget.h"
#include "memory/fences.h"
#include "memory/signals.h"

namespace vmm {

struct Ground {
  Ground(std::unique_ptr<Driver> driver_, std::shared_ptr<Budget> budget_, std::shared_ptr<Clock> clock_)
      : driver(std::move(driver_)), budget(std::move(budget_)), clock(std::move(clock_)) {}

  void require_parent() const { fork_guard.require_parent("this pool"); }
  /// The pool's lock. Throws Forked in a forked child.
  std::unique_lock<Mutex> locked() const {
    require_parent();
    return std::unique_lock(mutex);
  }
  /// What `look` returns under the pool's lock.
  template <class Look>
  auto under_lock(Look look) const {
    const std::lock_guard lock(mutex);
    return look();
  }
  /// Throws Closed once the pool is closed. Who must not be overtaken by that holds the lock.
  void require_open() const {
    if (closed) throw Closed("this pool is closed");
  }
  /// Whether whoever closes the pool still has patience to wait.
  bool may_wait() const {
    const Nanoseconds until = stop_waiting_at;
    return until == Nanoseconds::max() || clock->now() < until;
  }

  const std::unique_ptr<Driver> driver;
  const std::shared_ptr<Budget> budget;
  const std::shared_ptr<Clock> clock;
  ForkGuard fork_guard;
  Counters counters;
  Log log;
  Epochs epochs{*driver};
  Signals signals{*budget};

  // The pool's lock guards the tables, and what the rooms say it guards.
  mutable Mutex mutex{LockRank::pool};
  Condition changed;                // is notified when pages have changed their state in the tables
  std::atomic<bool> closed{false};  // changes under the lock only
  std::atomic<Nanoseconds> stop_waiting_at{Nanoseconds::max()};  // when the patience of closing ends
};

}  // namespace vmm
