#include "simulate/world.h"

#include <algorithm>
#include <utility>

#include "base/error.h"
#include "driver/checked_driver.h"

namespace vmm {

World::World(const WorldOptions& options)
    : wake_latency_(options.wake_latency),
      longest_wake_(options.longest_wake),
      random_(options.driver.faults.seed),
      clock_(std::make_shared<SimClock>(actors)),
      budget_(std::make_shared<LocalBudget>(options.budget)) {
  auto driver = std::make_unique<SimDriver>(clock_, options.driver);
  driver_ = driver.get();
  driver_->faults().stop();  // a failure while all this is made would prove nothing
  PoolOptions pool_options;
  pool_options.arena_bytes = options.arena_bytes;
  pool_ = Pool::make(std::make_unique<CheckedDriver>(std::move(driver)), budget_, clock_, pool_options);
  pager_ = std::make_shared<Pager>(pool_, PagerOptions{.idle_time = options.idle_time});
  pager_->set_waker([this] { wake(clock_->now() + wake_latency()); });
  clock_->on_wait([this] {
    count_wait();
    if (clock_->current() == caller) catch_up();
  });
}

World::~World() {
  pager_->set_waker([] {});
  clock_->on_wait([] {});
}

Nanoseconds World::wake_latency() {
  if (longest_wake_ <= wake_latency_) return wake_latency_;
  const auto more = static_cast<std::uint64_t>((longest_wake_ - wake_latency_).count());
  return wake_latency_ + Nanoseconds{static_cast<Nanoseconds::rep>(random_() % more)};
}

void World::count_wait() {
  if (++waits_ > most_waits) check();
}

void World::check() const {
  if (waits_ > most_waits) throw InvariantViolation("stuck: a wait, or what the pager does, has no end");
}

void World::sleep_until(Nanoseconds then) {
  check();
  waits_ = 0;
  clock_->idle(caller, then);
  catch_up();
}

void World::catch_up() {
  const Nanoseconds until = now();
  while (ring_before(until) || poll_before(until)) {
  }
  clock_->turn(caller);
}

/// The first alarm rings, if it is due before that time and before the pager's next piece of work.
bool World::ring_before(Nanoseconds until) {
  if (alarms_.empty()) return false;
  const Nanoseconds then = alarms_.begin()->first;
  if (then >= until || (pager_at_ && std::max(*pager_at_, clock_->now(pager_actor)) < then)) return false;
  clock_->turn(alarm_clock);
  clock_->idle(alarm_clock, then);
  alarms_.extract(alarms_.begin()).mapped()();
  return true;
}

/// The pager does a piece of work, if it begins before that time.
bool World::poll_before(Nanoseconds until) {
  clock_->turn(pager_actor);
  if (!pager_at_ || *pager_at_ >= until || clock_->now() >= until) return false;
  count_wait();
  clock_->idle(pager_actor, *std::exchange(pager_at_, {}));
  const Pager::Next next = pager_->poll(clock_->now());
  if (next.now)
    wake(clock_->now());
  else if (next.at)
    wake(*next.at);
  return true;
}

bool World::settle(Nanoseconds soon) {
  constexpr Nanoseconds never = Nanoseconds::max() - Nanoseconds{1};
  auto busy = [&] { return !alarms_.empty() || (pager_at_ && *pager_at_ - now() < soon); };
  for (int i = 0; i < 100'000 && busy(); ++i) {
    const Nanoseconds pager_at = pager_at_ ? std::max(*pager_at_, clock_->now(pager_actor)) : never;
    const Nanoseconds alarm_at = alarms_.empty() ? never : alarms_.begin()->first;
    sleep_until(std::max(now(), std::min(pager_at, alarm_at)) + Nanoseconds{1});
  }
  return !busy();
}

}  // namespace vmm
