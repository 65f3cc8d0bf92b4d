// Simulated time, which passes only when somebody says so.
#pragma once

#include <algorithm>
#include <cstddef>
#include <functional>
#include <utility>
#include <vector>

#include "base/clock.h"

namespace vmm {

/// Every actor has a time of its own. They take turns, and the actor whose turn it is pays for what it does.
/// One thread at a time may use this.
class SimClock final : public Clock {
 public:
  explicit SimClock(std::size_t actors) : times_(actors) {}

  Nanoseconds now() const noexcept override { return times_[current_]; }
  Nanoseconds now(std::size_t actor) const { return times_.at(actor); }
  std::size_t actors() const noexcept { return times_.size(); }
  std::size_t current() const noexcept { return current_; }
  void turn(std::size_t actor) { current_ = actor; }
  void advance(Nanoseconds by) { times_[current_] += by; }
  /// The actor does nothing until that time.
  void idle(std::size_t actor, Nanoseconds until) { times_.at(actor) = std::max(times_.at(actor), until); }

  /// `others` is called whenever the current actor has waited for a while: then it is the others' turn.
  void on_wait(std::function<void()> others) { others_ = std::move(others); }
  void sleep(Nanoseconds time) override {
    advance(time);
    others_();
  }
  void wait(std::unique_lock<Mutex>& lock, Condition&, Nanoseconds at_most) override {
    lock.unlock();
    sleep(at_most);
    lock.lock();
  }

 private:
  std::vector<Nanoseconds> times_;
  std::size_t current_ = 0;
  std::function<void()> others_ = [] {};
};

}  // namespace vmm
