// What a pool tells its pager, and how it wakes it.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <utility>

#include "base/lock.h"
#include "memory/budget.h"

namespace vmm {

/// Safe from any thread, also under the pool's lock. So `wake` must not call the pool.
class Signals {
 public:
  explicit Signals(Budget& budget)
      : budget_(budget), listener_(budget.listen([this](Bytes wanted) {
          pressure_bytes_.fetch_add(wanted.count);
          given_up_ += wanted.count == 0;
          wake();
        })) {}
  ~Signals() { stop(); }
  Signals(const Signals&) = delete;
  Signals& operator=(const Signals&) = delete;

  /// `wake` is called, from any thread, when something here may have changed, or when what could not be
  /// unmapped was retired.
  void on_change(std::function<void()> wake) {
    std::lock_guard lock(wake_mutex_);
    wake_ = std::move(wake);
  }
  void wake() {
    std::lock_guard lock(wake_mutex_);
    wake_();
  }
  void wake_if_over_budget() {
    if (budget_.taken() > budget_.limit()) wake();
  }
  /// From here on the budget tells nothing.
  void stop() { budget_.stop_listening(listener_); }
  /// The name by which the budget knows this pool.
  Budget::ListenerId listener() const noexcept { return listener_; }

  /// How much other owners of the budget have lacked since the last call.
  Bytes take_pressure() noexcept { return {pressure_bytes_.exchange(0)}; }

  /// Memory was given up. Unless `at_once`, work may still be using it.
  void given_up(bool at_once) {
    given_up_ += at_once;
    if (awaited_.exchange(false)) wake();
  }
  /// How often memory was given up, or the budget had more again.
  std::uint64_t times_given_up() const noexcept { return given_up_; }
  /// Somebody waits for memory to be given up, and is to be woken for it once.
  void await_given_up() { awaited_ = true; }
  bool awaited() const noexcept { return awaited_; }

  /// There may be memory that nobody needs, or a stream that has ended. The pager is woken the first time.
  void note_idle() {
    if (!may_idle_.exchange(true)) wake();
  }
  /// Whether there may be: then Reclaiming::age() must be called again, after a while.
  bool may_idle() const noexcept { return may_idle_; }
  void set_may_idle(bool may) noexcept { may_idle_ = may; }

 private:
  Budget& budget_;
  std::atomic<std::uint64_t> pressure_bytes_{0};
  std::atomic<std::uint64_t> given_up_{0};
  std::atomic<bool> awaited_{false};
  std::atomic<bool> may_idle_{false};
  Mutex wake_mutex_{LockRank::pool_wake};  // guards wake_
  std::function<void()> wake_ = [] {};
  const Budget::ListenerId listener_;  // last: the budget may call from here on
};

}  // namespace vmm
