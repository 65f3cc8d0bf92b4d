// A step in which nothing is due allocates nothing and hardly calls anybody.
#include "engine/kv_cache.h"

#include "check.h"
#include "fixtures.h"
#include "refused_allocations.h"

using namespace vmm;

namespace {

constexpr std::uint32_t slot_count = 64;
constexpr Bytes record{1'024};  // 64 tokens a page

struct Steady : TestPool {
  Steady() : TestPool(32_MiB), cache(pager, {{reserve(256_KiB, slot_count), 0, 1, record}}, slot_count, {}) {
    for (std::uint32_t i = 0; i < slot_count; ++i) {
      slots.push_back(static_cast<std::int32_t>(cache.open({}, {}, {})));
      lengths.push_back(1);
    }
    step(20);
  }
  void step(int times) {
    for (int i = 0; i < times; ++i) cache.step(slots, lengths, {});
  }
  void grow() {
    for (std::int32_t& length : lengths) ++length;
  }

  KvCache cache;
  std::vector<std::int32_t> slots, lengths;
};

/// How many allocations work() makes.
template <class Work>
int count(Work work) {
  const int before = allocations;
  work();
  return allocations - before;
}

}  // namespace

TEST(a_step_with_nothing_due_allocates_nothing_and_wakes_nobody) {
  Steady test;
  test.settle();
  int wakes = 0;
  test.pager->set_waker([&] { ++wakes; });
  Epochs& epochs = test.pool->epochs();
  const int by_steps = count([&] {
    for (int i = 0; i < 40; ++i) {
      test.grow();
      test.step(1);
    }
  });
  const int by_epochs = count([&] {
    for (int i = 0; i < 40; ++i) {
      if (i % 8 == 0) epochs.poll();
      epochs.step({});
    }
  });
  CHECK(by_steps <= by_epochs + 1);  // what is not over is listed in blocks, which may end here or there
  CHECK(wakes == 0);
  test.pager->set_waker([] {});
}

TEST(what_comes_due_wakes_the_pager_once_for_all) {
  Steady test;
  test.settle();
  int wakes = 0;
  test.pager->set_waker([&] { ++wakes; });
  for (int i = 0; i < 62; ++i) {
    test.grow();
    test.step(1);
  }
  CHECK(wakes == 1);  // all 64 are near the end of their page
  test.settle();
  CHECK(test.pool->counters().stalls.get() == 1);  // the first step of all
  CHECK(test.pool->counters().pages_mapped_ahead.get() >= slot_count);
  test.pager->set_waker([] {});
}

TEST(a_lost_driver_call_changes_nothing) {
  for (std::int64_t n = 1; n < 100; ++n) {
    Steady test;
    test.lengths.assign(slot_count, 100);
    test.faults->fail_at(n, 1, Fault::error);
    bool failed = false;
    try {
      test.step(1);
    } catch (const DriverError&) {
      failed = true;
    }
    test.faults->fail_at(0, 0, Fault::error);
    for (std::int32_t slot : test.slots)
      CHECK(test.cache.length(static_cast<std::uint32_t>(slot)) == Tokens{failed ? 1U : 100U});
    CHECK(test.pool->stats().kept == 64_KiB * (failed ? slot_count : 2 * slot_count));
    test.pool->check();
    test.step(1);
    if (failed) continue;
    CHECK(n > 2);
    return;
  }
  CHECK(!"it fails for ever");
}

/// Whichever allocation of a poll fails, the process goes on, and what was announced is mapped later.
TEST(a_pager_without_memory_of_its_own_loses_nothing) {
  int polls_that_failed = 0;
  for (int n = 1; n < 200; ++n) {
    TestPool test(1_MiB);
    auto lease = test.reserve(1_MiB, 4);
    const auto slots = Slots::make(test.pager, {{lease, 0, 1, record}}, 4, {.look_ahead = false});
    const auto others = Slots::make(test.pager, {{test.reserve(1_MiB), 0, 1, record}}, 1, {});
    advance_slots(*slots, std::vector<SlotLength>{{0, {16 * 64}}});
    slots->announce(1, {64});
    others->announce(0, {64});
    test.settle();  // both starve
    slots->announce(2, {64});
    Slots::Needs(*slots).prepare(3, {64});
    truncate(*slots, 0, {8 * 64});
    test.budget->set_limit(768_KiB);
    test.clock->advance(PagerOptions{}.idle_time);
    const int before = allocations;
    is_refused(n, [&] { test.pager->poll(test.clock->now()); });
    const bool some_failed = reached(before, n);
    for (int i = 0; i < 3; ++i) test.settle();
    for (std::uint32_t slot : {1, 2}) CHECK(Slots::Needs(*slots).ready(slot, {64}) == Tokens{64});
    CHECK(Slots::Needs(*others).ready(0, {64}) == Tokens{64});
    test.pool->check();
    if (!some_failed) break;
    ++polls_that_failed;
  }
  CHECK(polls_that_failed > 5 && polls_that_failed < 199);
}
