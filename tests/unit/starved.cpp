// What was announced while memory was full is kept in mind, and asked for again when something is given up.
#include "base/error.h"
#include "check.h"
#include "engine/kv_cache.h"
#include "engine/slots.h"
#include "fixtures.h"

using namespace vmm;

namespace {

constexpr Bytes record{1'024};  // 64 tokens in a page of 64 KiB
constexpr std::uint32_t slot_count = 4;

struct Full : TestPool {
  explicit Full(std::shared_ptr<LocalBudget> shared = nullptr)
      : TestPool(1_MiB, std::move(shared)),  // 16 pages
        lease(reserve(1_MiB, slot_count)),
        slots(Slots::make(pager, {{lease, 0, 1, record}}, slot_count, {.look_ahead = false})) {
    pager->set_waker([this] { ++wakes; });
  }
  ~Full() {
    pager->set_waker([] {});
  }

  void advance(std::uint32_t slot, std::uint64_t tokens) {
    advance_slots(*slots, std::vector<SlotLength>{{slot, {tokens}}});
  }
  /// Pages of a slot that are mapped.
  std::uint64_t mapped(std::uint32_t slot) const {
    return Pool::Needs(*pool).resident(lease->reservation(), {{16 * slot}, {16}}).count;
  }
  std::uint64_t wakes_by(auto action) {
    const std::uint64_t before = wakes;
    action();
    return wakes - before;
  }

  std::uint64_t wakes = 0;
  std::shared_ptr<Lease> lease;
  std::shared_ptr<Slots> slots;
};

/// The pager will do nothing soon, except look for what idles.
bool nothing_soon(const Full& test, const Pager::Next& next) {
  return !next.at || *next.at >= test.clock->now() + PagerOptions{}.idle_time / 2;
}

}  // namespace

TEST(who_was_announced_while_memory_was_full_gets_what_is_given_up) {
  Full test;
  test.advance(0, 16 * 64);
  test.slots->announce(std::vector<SlotLength>{{1, {64}}, {2, {2 * 64}}});
  test.settle();
  CHECK(test.mapped(1) == 0 && test.mapped(2) == 0);
  CHECK(test.wakes_by([&] { truncate(*test.slots, 0, {8 * 64}); }) == 1);
  test.settle();
  CHECK(test.mapped(1) == 1 && test.mapped(2) == 2);
  CHECK(test.wakes_by([&] { truncate(*test.slots, 0, {64}); }) == 0);  // nobody waits any more
  test.pool->check();
}

TEST(as_much_as_there_is_for_them) {
  Full test;
  test.advance(0, 14 * 64);
  test.slots->announce(1, {5 * 64});
  test.settle();
  CHECK(test.mapped(1) == 2);
  truncate(*test.slots, 0, {13 * 64});
  test.settle();
  CHECK(test.mapped(1) == 3);
  truncate(*test.slots, 0, {});
  test.settle();
  CHECK(test.mapped(1) == 5);
}

TEST(nobody_asks_in_a_spin) {
  Full test;
  test.advance(0, 16 * 64);
  test.slots->announce(1, {64});
  test.settle();
  const auto tried = test.pool->counters().pages_mapped_ahead.get();
  for (int i = 0; i < 10; ++i) {
    const Pager::Next next = test.pager->poll(test.clock->now());
    CHECK(!next.now && nothing_soon(test, next));
  }
  CHECK(test.pool->counters().pages_mapped_ahead.get() == tried);
}

TEST(a_budget_that_is_raised_again_reaches_who_waits) {
  Full test;
  test.advance(0, 15 * 64);
  test.budget->set_limit(64_KiB * 15);
  test.slots->announce(1, {64});
  test.settle();
  CHECK(test.mapped(1) == 0);
  CHECK(test.wakes_by([&] { test.budget->set_limit(1_MiB); }) >= 1);
  test.settle();
  CHECK(test.mapped(1) == 1);
}

TEST(what_another_pool_gives_back_to_the_budget_reaches_who_waits) {
  auto budget = std::make_shared<LocalBudget>(1_MiB);
  Full test(budget);
  TestPool other({}, budget);
  auto used = other.reserve(1_MiB);
  map(*used, 0, 16);
  test.slots->announce(1, {64});
  test.settle();
  CHECK(test.mapped(1) == 0);
  used.reset();
  other.pool->trim(1_MiB);
  test.settle();
  CHECK(test.mapped(1) == 1);
}

TEST(a_reservation_that_nobody_leases_any_more_is_given_up) {
  Full test;
  auto other = test.reserve(1_MiB);
  map(*other, 0, 16);
  test.slots->announce(1, {64});
  test.settle();
  CHECK(test.wakes_by([&] { other.reset(); }) == 1);
  test.settle();
  CHECK(test.mapped(1) == 1);
}

TEST(what_is_retired_is_given_up_when_it_is_unmapped) {
  Full test;
  auto other = test.reserve(1_MiB);
  map(*other, 0, 16);
  test.slots->announce(1, {64});
  test.settle();
  retire(*other, 0, 1);
  test.settle();
  CHECK(test.mapped(1) == 1);
}

/// What is closed in an epoch can be had when the epoch is over.
TEST(a_step_that_ends_the_epoch_in_which_something_was_closed_wakes_the_pager) {
  TestPool test(1_MiB);
  std::uint64_t wakes = 0;
  test.pager->set_waker([&] { ++wakes; });
  auto lease = test.reserve(1_MiB, slot_count);
  KvCache cache(test.pager, {{lease, 0, 1, record}}, slot_count, {});
  const auto first = static_cast<std::int32_t>(cache.open({}, {}, {}));
  const auto second = static_cast<std::int32_t>(cache.open({}, {}, {}));
  const std::vector<std::int32_t> both{first, second}, lengths{14 * 64, 2 * 64};
  cache.step(both, lengths, {});
  test.settle();
  cache.announce_tokens(static_cast<std::uint32_t>(second), {3 * 64});
  test.settle();
  auto mapped = [&] {
    return Pool::Needs(*test.pool)
        .resident(lease->reservation(), {{16 * static_cast<std::uint32_t>(second)}, {16}})
        .count;
  };
  CHECK(mapped() == 2);
  cache.close(static_cast<std::uint32_t>(first), {});
  test.settle();
  CHECK(mapped() == 2);
  wakes = 0;
  cache.step(std::span(both).subspan(1), std::span(lengths).subspan(1), {});
  CHECK(wakes == 1);
  test.settle();
  CHECK(mapped() == 3);
  wakes = 0;
  cache.step(std::span(both).subspan(1), std::span(lengths).subspan(1), {});
  CHECK(wakes == 0);
  cache.end({});
  test.pool->check();
  test.pager->set_waker([] {});
}

/// Late work ends without telling anybody. For that, and only then, the pager looks again by itself.
TEST(what_work_under_way_still_uses_is_looked_for_until_that_is_over) {
  Full test;
  const StreamHandle stream = test.pool->streams().create();
  test.advance(0, 16 * 64);
  test.slots->announce(1, {64});
  test.settle();
  test.pool->epochs().step(stream);
  truncate(*test.slots, 0, {8 * 64});
  Pager::Next next = test.pager->poll(test.clock->now());
  CHECK(!next.now && nothing_soon(test, next));  // the epoch is open: only its owner can end it
  test.faults->hold_events(true);
  test.pool->epochs().end(stream);
  next = test.pager->poll(test.clock->now());
  CHECK(!next.now && next.at && *next.at > test.clock->now());
  CHECK(test.mapped(1) == 0);
  test.faults->hold_events(false);
  test.settle();
  CHECK(test.mapped(1) == 1);
  test.pool->streams().destroy(stream);
}

TEST(the_time_without_memory_is_no_delay_of_the_pager_s) {
  Full test;
  test.advance(0, 16 * 64);
  test.slots->announce(1, {64});
  test.settle();
  test.clock->advance(Nanoseconds{1'000'000'000});
  truncate(*test.slots, 0, {8 * 64});
  test.settle();
  CHECK(test.mapped(1) == 1);
  CHECK(test.slots->take_delay() == Nanoseconds{0});
}

/// A failure of the driver is no lack of memory, so nobody will tell when it is over.
TEST(what_failed_is_asked_for_again_when_the_pager_is_woken_next) {
  Full test;
  test.slots->announce(std::vector<SlotLength>{{1, {64}}, {2, {2 * 64}}});
  test.faults->fail_at(1, 1, Fault::error);
  test.settle();
  CHECK(test.mapped(1) == 0 && test.mapped(2) == 0);
  test.settle();
  CHECK(test.mapped(1) == 1 && test.mapped(2) == 2);
  test.pool->check();
}

TEST(what_fails_again_and_again_does_so_once_each_time) {
  Full test;
  test.slots->announce(1, {64});
  test.faults->fail_at(1, 1'000, Fault::error);
  for (int i = 1; i <= 10; ++i) {
    const Pager::Next next = test.pager->poll(test.clock->now());
    CHECK(!next.now && nothing_soon(test, next));
    CHECK(test.faults->calls() == i);
  }
}

TEST(the_time_since_a_failure_is_no_delay_of_the_pager_s) {
  for (const Fault fault : {Fault::error, Fault::mapping_limit}) {
    Full test;
    test.slots->announce(1, {64});
    test.faults->fail_at(1, 1, fault);
    test.settle();
    test.clock->advance(Nanoseconds{1'000'000'000});
    test.slots->announce(1, {2 * 64});
    test.clock->advance(Nanoseconds{500});
    test.settle();
    CHECK(test.mapped(1) == 2);
    CHECK(test.slots->take_delay() == Nanoseconds{500});
  }
}

TEST(who_found_no_mappings_left_gets_them_when_some_are_given_up) {
  Full test;
  auto other = test.reserve(1_MiB);
  map(*other, 0, 1);
  test.slots->announce(1, {64});
  test.faults->fail_at(1, 1'000, Fault::mapping_limit);
  test.settle();
  const auto calls = test.faults->calls();
  test.settle();
  CHECK(test.mapped(1) == 0 && test.faults->calls() == calls);  // nobody asks in vain
  test.faults->fail_at(0, 0, Fault::error);
  CHECK(test.wakes_by([&] { other.reset(); }) == 1);
  test.settle();
  CHECK(test.mapped(1) == 1);
}

/// The pager must not sit in one announcement while others wait for it.
TEST(what_is_about_to_be_given_up_is_not_waited_for_within_an_announcement) {
  Full test;
  const StreamHandle stream = test.pool->streams().create();
  auto other = test.reserve(1_MiB);
  map(*other, 0, 16);
  test.faults->delay_events(50);
  test.pool->epochs().step(stream);
  test.pool->epochs().end(stream);
  retire(*other, 0, 16);
  test.slots->announce(1, {64});
  Pager::Next next = test.pager->poll(test.clock->now());
  CHECK(test.mapped(1) == 0);
  CHECK(!next.now && next.at);  // it looks for it by itself
  for (int polls = 0; polls < 200 && test.mapped(1) == 0; ++polls) test.pager->poll(test.clock->now());
  CHECK(test.mapped(1) == 1);
  test.faults->hold_events(false);
  test.pool->streams().destroy(stream);
}

/// A step that fails has nevertheless ended an epoch.
TEST(a_step_that_is_refused_for_another_stream_s_sake_wakes_the_pager_too) {
  TestPool test(1_MiB);
  const StreamHandle other = test.pool->streams().create();
  auto lease = test.reserve(1_MiB, 3);
  KvCache cache(test.pager, {{lease, 0, 1, record}}, 3, {});
  auto step = [&](std::vector<std::uint32_t> slots, std::vector<std::int32_t> lengths, StreamHandle stream) {
    const std::vector<std::int32_t> numbers(slots.begin(), slots.end());
    cache.step(numbers, lengths, stream);
  };
  const std::uint32_t large = cache.open({}, {}, {}), small = cache.open({}, {}, {});
  step({large, small}, {13 * 64, 2 * 64}, {});
  cache.close(large, {});
  const std::uint32_t elsewhere = cache.open({}, {}, other);
  step({elsewhere}, {64}, other);
  cache.close(elsewhere, other);
  CHECK(cache.open({}, {}, {}) == large);
  CHECK(cache.open({}, {}, {}) == elsewhere);  // the only one that is free
  cache.announce_tokens(small, {3 * 64});
  test.settle();
  CHECK(Pool::Needs(*test.pool).resident(lease->reservation(), {{16 * small}, {16}}).count == 2);
  std::uint64_t wakes = 0;
  test.pager->set_waker([&] { ++wakes; });
  CHECK_THROWS(Error, "open still", step({elsewhere}, {64}, {}));
  CHECK(wakes == 1);
  test.settle();
  CHECK(Pool::Needs(*test.pool).resident(lease->reservation(), {{16 * small}, {16}}).count == 3);
  test.pager->set_waker([] {});
  cache.end(other);
  cache.end({});
  test.pool->streams().destroy(other);
}

/// A caller who must have memory asks the device again. If the device has some, others can have theirs.
TEST(who_starved_because_of_the_device_is_woken_when_others_get_some) {
  Full test;
  auto other = test.reserve(1_MiB);
  test.slots->announce(1, {64});
  test.faults->fail_at(1, 1, Fault::out_of_memory);
  test.settle();
  CHECK(test.mapped(1) == 0);
  test.settle();
  CHECK(test.mapped(1) == 0);
  CHECK(test.wakes_by([&] { map(*other, 0, 1); }) == 1);
  test.settle();
  CHECK(test.mapped(1) == 1);
}

TEST(a_stream_that_ends_in_an_open_epoch_wakes_the_pager) {
  Full test;
  const StreamHandle stream = test.pool->streams().create();
  test.advance(0, 16 * 64);
  test.slots->announce(1, {64});
  test.settle();
  test.pool->epochs().step(stream);
  truncate(*test.slots, 0, {8 * 64});
  test.settle();
  CHECK(test.mapped(1) == 0);
  CHECK(test.wakes_by([&] { test.pool->streams().destroy(stream); }) == 1);
  test.settle();
  CHECK(test.mapped(1) == 1);
}
