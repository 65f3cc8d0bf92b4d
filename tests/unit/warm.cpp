// Physical memory that is created before anybody needs it.
#include <algorithm>

#include "base/error.h"
#include "check.h"
#include "engine/slots.h"
#include "fixtures.h"
#include "policy/creation_predictor.h"
#include "simulate/world.h"

using namespace vmm;

namespace {

constexpr Bytes everything{~std::uint64_t{0}};

Bytes warm(TestPool& test, Bytes wanted, Bytes at_most = everything) {
  return test.pool->mapping().warm(wanted, 64_KiB, at_most);
}

/// The pool creates memory in pieces of this size.
Bytes unit() { return on_cuda() ? 64_KiB : 1_MiB; }

/// A device whose calls take time, one slot of 64 pages on it, and a pager that is polled only when its time
/// has come.
struct Device {
  explicit Device(Bytes budget) : world({.budget = budget}) {
    lease = world.pool()->reserve({.page_bytes = 2_MiB, .extent_bytes = 2_MiB * 64});
    slots = Slots::make(world.pager(), {{lease, 0, 1, 2_MiB}}, 1, {.look_ahead = false});
  }
  PoolStats stats() const { return world.pool()->stats(); }
  std::uint64_t created() const { return world.pool()->counters().pages_created.get(); }
  void advance(std::uint64_t pages) { advance_slots(*slots, std::vector<SlotLength>{{0, {pages}}}); }

  World world;
  std::shared_ptr<Lease> lease;
  std::shared_ptr<Slots> slots;
};

}  // namespace

TEST(what_was_created_ahead_need_not_be_created_when_it_is_mapped) {
  TestPool test(16_MiB);
  CHECK(warm(test, 4_MiB) == 4_MiB);
  CHECK(test.pool->stats().free == 4_MiB && test.pool->stats().created == 4_MiB);
  test.pool->check();
  CHECK(warm(test, 4_MiB) == Bytes{});  // it is there
  CHECK(warm(test, 4_MiB + Bytes{1}) == unit());
  auto lease = test.reserve(4_MiB);
  map(*lease, 0, 64);
  CHECK(test.pool->counters().pages_created.get() == (4_MiB + unit()) / 64_KiB);
  CHECK(test.pool->stats().free == unit());
  std::ranges::fill(std::span(bytes_at(*lease, {}), (4_MiB).count), 7);
  test.pool->check();
}

TEST(it_is_created_in_runs_so_that_neighbours_merge) {
  TestPool test(16_MiB);
  warm(test, 3_MiB);
  const auto runs = test.pool->stats().runs;
  CHECK(on_cuda() ? runs == 48 : runs == 3);
  auto lease = test.reserve(2_MiB);
  for (std::uint32_t i = 0; i < 32; ++i) map(*lease, (i * 13) % 32, 1);  // in any order
  CHECK(test.pool->stats().runs == runs);
  CHECK(test.pool->counters().pages_created.get() == 48);
  test.pool->check();
}

TEST(as_much_at_once_as_is_wanted_at_once) {
  TestPool test(16_MiB);
  CHECK(warm(test, 4_MiB, 192_KiB) == round_up(192_KiB, unit()));
  CHECK(warm(test, 4_MiB, 192_KiB) == round_up(192_KiB, unit()));
  CHECK(warm(test, 4_MiB) == 4_MiB - round_up(192_KiB, unit()) * 2);
  test.pool->check();
}

TEST(as_much_as_the_budget_has_and_nobody_is_pressed_for_it) {
  auto budget = std::make_shared<LocalBudget>(2_MiB);
  TestPool one({}, budget);
  TestPool two({}, budget);
  auto idle = one.reserve(1_MiB);
  map(*idle, 0, 16);
  idle.reset();
  CHECK(warm(two, 2_MiB) == 1_MiB);
  one.settle();
  CHECK(one.pool->stats().mapped == 1_MiB);
  CHECK(warm(two, 2_MiB) == Bytes{});
  CHECK(budget->taken() == 2_MiB);
  two.pool->trim(everything);
  CHECK(budget->taken() == 1_MiB);
}

TEST(as_much_as_the_device_has) {
  TestPool test(16_MiB);
  test.faults->fail_at(20, 1'000, Fault::out_of_memory);
  CHECK(warm(test, 4_MiB) == 64_KiB * 19);
  CHECK(test.pool->stats().created == 64_KiB * 19 && test.budget->taken() == 64_KiB * 19);
  test.pool->check();
  test.faults->fail_at(0, 0, Fault::error);
  warm(test, 4_MiB);
  CHECK(test.pool->stats().free >= 4_MiB && test.pool->stats().free == test.budget->taken());
  test.pool->check();
}

TEST(a_driver_that_fails_takes_nothing_from_the_budget) {
  TestPool test(16_MiB);
  test.faults->fail_at(20, 1, Fault::error);
  CHECK_THROWS(DriverError, "create", warm(test, 4_MiB));
  CHECK(test.pool->stats().created == test.budget->taken());
  CHECK(test.pool->stats().free == test.budget->taken());
  test.pool->check();
}

TEST(what_was_given_back_is_created_in_the_same_places_again) {
  TestPool test(16_MiB);
  warm(test, 16_MiB);
  const auto runs = test.pool->stats().runs;
  for (int i = 0; i < 5; ++i) {
    CHECK(test.pool->trim(5_MiB) >= 5_MiB);
    CHECK(warm(test, 16_MiB) >= 5_MiB);
    test.pool->check();
  }
  CHECK(test.pool->stats().runs == runs);
}

TEST(bad_sizes_and_closed_pools_are_refused) {
  TestPool test(16_MiB);
  CHECK_THROWS(InvalidArgument, "page_bytes", test.pool->mapping().warm(1_MiB, Bytes{5'000}, everything));
  CHECK_THROWS(InvalidArgument, "page_bytes", test.pool->mapping().warm(1_MiB, {}, everything));
  test.pool->close();
  CHECK_THROWS(Closed, "closed", warm(test, 1_MiB));
  CHECK(test.pool->stats().created == Bytes{});
}

TEST(what_lately_had_to_be_created_at_once_is_expected_again) {
  CreationPredictor predictor;
  CHECK(predictor.reserve() == Bytes{});
  predictor.created(64_MiB);
  CHECK(predictor.reserve() == 64_MiB);
  predictor.created(2_MiB);
  CHECK(predictor.reserve() == 63_MiB);
  predictor.created(128_MiB);
  CHECK(predictor.reserve() == 128_MiB);
  for (int i = 0; i < 1'000; ++i) predictor.created(2_MiB);
  CHECK(predictor.reserve() < 3_MiB);
}

TEST(when_idle_the_pager_creates_what_had_to_be_created_at_once) {
  Device device(4_GiB);
  device.world.settle();
  CHECK(device.created() == 0);
  device.advance(8);
  CHECK(device.world.settle());
  CHECK(device.created() == 16 && device.stats().free == 16_MiB);
  device.advance(16);
  CHECK(device.created() == 16);  // they were there
  CHECK(device.world.settle());
  CHECK(device.stats().free == Bytes{});  // nothing had to be created since
  device.world.pool()->check();
}

TEST(the_reserve_is_a_small_part_of_the_budget_and_made_once) {
  Device device(2_MiB * 128);
  device.advance(50);
  CHECK(device.world.settle());
  CHECK(device.stats().free == 4_MiB);  // a 64th of the budget
  device.world.pool()->trim(everything);
  CHECK(device.world.settle());
  CHECK(device.stats().free == Bytes{});  // whoever gave it back knows why
  device.world.pool()->check();
}

TEST(what_is_asked_for_comes_before_what_may_be) {
  Device device(8_GiB);
  device.advance(20);
  device.world.sleep_until(device.world.now() + std::chrono::milliseconds(1));  // some pages of the reserve
  const auto free = device.stats().free;
  CHECK(free.count != 0 && free < 40_MiB);
  device.slots->announce(0, {40});
  device.world.sleep_until(device.world.now() + std::chrono::milliseconds(6));
  CHECK(device.stats().mapped == 80_MiB);
  CHECK(device.world.settle());
}

TEST(no_reserve_is_made_while_somebody_starves) {
  Device device(2_MiB * 66);  // a 64th of which is a page
  auto lease = device.world.pool()->reserve({.page_bytes = 8_MiB, .extent_bytes = 8_MiB});
  const auto larger = Slots::make(device.world.pager(), {{lease, 0, 1, 8_MiB}}, 1, {});
  device.advance(32);
  device.slots->announce(0, {64});
  larger->announce(0, {1});  // an announcement takes nothing from another, and two small pages are left
  CHECK(device.world.settle());
  CHECK(device.stats().mapped == 2_MiB * 64);
  device.world.pool()->check();
}
