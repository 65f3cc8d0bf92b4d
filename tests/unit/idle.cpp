// What depends on the pager's clock: memory that nobody has needed for a while is given back, and a device
// that was full is believed to be so for a while.
#include <algorithm>
#include <vector>

#include "base/error.h"
#include "check.h"
#include "engine/kv_cache.h"
#include "engine/slots.h"
#include "fixtures.h"

using namespace vmm;
using namespace std::chrono_literals;

namespace {

constexpr Nanoseconds a_while = PagerOptions{}.idle_time;

/// Drives the pager as its thread would, until so much time has passed. Returns how often it woke up.
int pass(TestPool& test, Nanoseconds time) {
  const Nanoseconds end = test.clock->now() + time;
  for (int polls = 1;; ++polls) {
    const Pager::Next next = test.pager->poll(test.clock->now());
    if (next.now) continue;
    if (!next.at || *next.at > end) {
      test.clock->advance(end - test.clock->now());
      return polls;
    }
    test.clock->advance(*next.at - test.clock->now());
  }
}

/// What the pool has created, without what the pager of a GPU creates ahead.
Bytes created(const TestPool& test) {
  const PoolStats stats = test.pool->stats();
  return stats.created - std::min(stats.free, stats.budget / 64);
}

/// A cache whose slots lie ready: two pages each.
struct Ready : TestPool {
  Ready()
      : TestPool(16_MiB), cache(pager, {{reserve(256_KiB, 4), 0, 1, {1'024}}}, 4, {.first_tokens = {128}}) {}
  ~Ready() {
    cache.end({});
    finish_work();
  }

  void step() {
    const auto number = static_cast<std::int32_t>(slot);
    cache.step(std::span(&number, 1), std::span(&length, 1), {});
  }
  Bytes guessed() const { return pool->stats().mapped - pool->stats().kept; }

  KvCache cache;
  std::uint32_t slot = 0;
  std::int32_t length = 1;
};

}  // namespace

TEST(an_idle_reservation_is_given_back_after_a_while) {
  TestPool test(16_MiB);
  auto used = test.reserve(1_MiB);
  auto idle = test.reserve(1_MiB, 2);
  map(*used, 0, 16);
  map(*idle, 0, 32);
  idle.reset();
  pass(test, a_while - 1s);
  CHECK(test.pool->stats().mapped == 3_MiB);
  pass(test, a_while + 1s);
  CHECK(test.pool->stats().mapped == 1_MiB);
  CHECK(created(test) == 1_MiB);
  CHECK(test.pool->stats().reservations_idle == 0);
  test.pool->check();
}

TEST(so_is_what_a_lease_does_not_need_any_more) {
  TestPool test(16_MiB);
  auto growth = test.grow(test.reserve(1_MiB), Bytes{256});
  growth->advance({4096});
  growth->truncate({300});
  pass(test, 2 * a_while);
  CHECK(test.pool->stats().kept == 128_KiB);
  CHECK(created(test) == 128_KiB);
  growth->advance({4096});  // and it comes back
  test.pool->check();
}

TEST(so_is_what_lies_free) {
  TestPool test(64_MiB);
  auto lease = test.reserve(4_MiB);
  map(*lease, 0, 64);
  retire(*lease, 0, 60);
  test.settle();
  pass(test, a_while - 1s);
  CHECK(test.pool->stats().free >= 64_KiB * 60);
  pass(test, a_while + 1s);
  CHECK(created(test) == 256_KiB);
  CHECK(pass(test, 1h) <= 2);
  test.pool->check();
}

TEST(but_not_what_was_made_warm) {
  TestPool test(64_MiB);
  test.pool->mapping().warm(4_MiB, 64_KiB, 4_MiB);
  pass(test, 4 * a_while);
  CHECK(test.pool->stats().free == 4_MiB);
  CHECK(pass(test, 1h) == 1);
}

TEST(much_is_given_back_in_pieces) {
  TestPool test(64_MiB);
  auto lease = test.reserve(32_MiB);
  map(*lease, 0, 512);
  lease.reset();
  pass(test, 2 * a_while - 1s);
  test.clock->advance(2s);
  const Bytes piece = PagerOptions{}.batch_bytes;
  for (Bytes mapped = 32_MiB; mapped.count != 0; mapped -= piece) {
    CHECK(test.pool->stats().mapped == mapped);
    test.pager->poll(test.clock->now());
  }
  CHECK(test.pool->stats().mapped == Bytes{});
  CHECK(created(test) == Bytes{});
  test.pool->check();
}

TEST(what_is_used_again_in_time_stays) {
  TestPool test(16_MiB);
  for (int i = 0; i < 10; ++i) {
    auto lease = test.reserve(1_MiB);
    map(*lease, 0, 16);
    pass(test, a_while / 3);
    lease.reset();
    pass(test, a_while / 3);
  }
  CHECK(created(test) == 1_MiB);
  CHECK(test.pool->counters().pages_unmapped.get() == 0);
}

TEST(what_work_under_way_may_use_waits) {
  TestPool test(16_MiB);
  auto lease = test.reserve(1_MiB);
  map(*lease, 0, 16);
  test.pool->epochs().step({});
  lease.reset();
  pass(test, 4 * a_while);
  CHECK(test.pool->stats().mapped == 1_MiB);
  test.pool->epochs().end({});
  finish_work();
  pass(test, 2 * a_while);
  CHECK(created(test) == Bytes{});
}

TEST(nobody_wakes_up_for_nothing) {
  TestPool test(16_MiB);
  CHECK(pass(test, 1h) == 1);
  auto used = test.reserve(1_MiB);
  map(*used, 0, 16);
  test.settle();
  CHECK(pass(test, 1h) == 1);  // nothing idles
  auto idle = test.reserve(1_MiB, 2);
  map(*idle, 0, 32);
  idle.reset();
  test.settle();
  CHECK(pass(test, 1h) <= 4);
  CHECK(created(test) == 1_MiB);
  CHECK(pass(test, 1h) == 1);
}

TEST(the_pager_is_woken_once_for_what_idles) {
  TestPool test(16_MiB);
  int wakes = 0;
  test.pager->set_waker([&] { ++wakes; });
  for (int i = 0; i < 5; ++i) {
    auto lease = test.reserve(1_MiB);
    map(*lease, 0, 16);
    lease.reset();
  }
  CHECK(wakes == 1);
  test.pager->set_waker([] {});
}

TEST(an_unmapping_of_what_idles_that_fails_is_tried_again) {
  TestPool test(16_MiB);
  auto lease = test.reserve(1_MiB);
  map(*lease, 0, 16);
  lease.reset();
  pass(test, a_while + 1s);
  test.faults->fail_at(1, 1, Fault::error);
  pass(test, 2 * a_while);
  test.faults->fail_at(0, 0, Fault::error);
  pass(test, 2 * a_while);
  CHECK(test.pool->stats().mapped == Bytes{});
  test.pool->check();
}

TEST(what_a_device_refused_is_believed_for_a_while) {
  if (!on_cuda()) return;  // the host's memory is not to be used up here
  TestPool test(16_MiB);
  auto lease = test.reserve(4_MiB);
  map(*lease, 0, 16);
  standin_set("capacity", static_cast<std::int64_t>((1_MiB).count));
  CHECK_THROWS(OutOfPages, "the device gave less", map(*lease, 0, 32));
  const auto asked = standin_count("cuMemCreate");
  MapOptions guess;
  guess.need = Need::guess;
  CHECK_THROWS(OutOfPages, "the device gave less", map(*lease, 0, 32, guess));
  CHECK(standin_count("cuMemCreate") == asked);  // not asked again
  standin_set("capacity", static_cast<std::int64_t>((1_GiB).count));
  test.clock->advance(Allowance::device_believed);
  map(*lease, 0, 32, guess);
  CHECK(test.pool->stats().mapped == 2_MiB);
  test.pool->check();
}

TEST(who_starved_because_of_the_device_asks_again_by_itself) {
  if (!on_cuda()) return;
  TestPool test(16_MiB);
  auto lease = test.reserve(1_MiB, 2);
  const auto slots = Slots::make(test.pager, {{lease, 0, 1, {1'024}}}, 2, {.look_ahead = false});
  advance_slots(*slots, std::vector<SlotLength>{{0, {1'024}}});
  standin_set("capacity", static_cast<std::int64_t>((1_MiB).count));
  slots->announce(1, {64});
  test.settle();
  CHECK(test.pool->stats().mapped == 1_MiB);
  standin_set("capacity", static_cast<std::int64_t>((1_GiB).count));
  pass(test, 2 * Allowance::device_believed);
  CHECK(test.pool->stats().mapped == 1_MiB + 64_KiB);
}

TEST(slots_that_lie_ready_in_a_cache_that_nobody_uses_are_given_back) {
  Ready test;
  test.settle();
  CHECK(test.guessed() == 128_KiB);  // for one who comes
  pass(test, a_while - 1s);
  CHECK(test.guessed() == 128_KiB);
  pass(test, 3 * a_while);
  CHECK(test.pool->stats().mapped == Bytes{} && created(test) == Bytes{});
  CHECK(pass(test, 1h) == 1);  // nor does the pager wake up for it again
  test.slot = test.cache.open({}, {}, {});
  test.settle();
  CHECK(test.guessed() == 64_KiB + 128_KiB);  // the one that came, and the next
  test.step();
  CHECK(test.pool->counters().stalls.get() == 0);
  test.pool->check();
}

TEST(those_of_a_cache_in_use_stay) {
  Ready test;
  test.slot = test.cache.open({}, {}, {});
  test.step();
  test.settle();
  const Bytes ready = test.guessed();
  CHECK(ready >= 128_KiB);
  for (int i = 0; i < 10; ++i) {
    pass(test, a_while / 2);
    test.step();
  }
  CHECK(test.guessed() == ready);
  CHECK(test.pool->counters().pages_unmapped.get() == 0);
}

/// Sequences may wait for long, and then go on.
TEST(the_next_step_makes_slots_ready_again) {
  Ready test;
  test.slot = test.cache.open({}, {}, {});
  test.step();
  test.settle();
  const Bytes ready = test.guessed();
  pass(test, 4 * a_while);
  CHECK(test.guessed() == Bytes{});
  CHECK(test.cache.length(test.slot) == Tokens{1});
  test.step();
  test.settle();
  CHECK(test.guessed() == ready);
  pass(test, 4 * a_while);
  CHECK(test.guessed() == Bytes{});
  test.pool->check();
}
