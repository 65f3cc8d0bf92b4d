// What was announced while memory was full: kept in mind, and asked for again when something is given up.
#include "check.h"
#include "full_pool.h"

using namespace vmm;

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

/// Who must have memory asks the device again; if it has some, others may have theirs.
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
