// The arena, and a pool: what it maps, reuses and undoes.
#include <atomic>
#include <chrono>
#include <cstring>
#include <thread>

#include "base/error.h"
#include "check.h"
#include "fixtures.h"
#include "memory/arena.h"
#include "memory/waiting.h"

using namespace vmm;

TEST(an_arena_reuses_and_merges_what_was_freed) {
  const auto driver = make_driver();
  Arena arena(*driver, 1_MiB, 1_MiB, 64_KiB);
  auto a = arena.allocate(256_KiB, 64_KiB), b = arena.allocate(256_KiB, 64_KiB);
  auto c = arena.allocate(512_KiB, 64_KiB);
  const Address first = a->base();
  CHECK(!arena.allocate(64_KiB, 64_KiB));
  a.reset();
  c.reset();
  CHECK(!arena.allocate(1_MiB, 64_KiB));
  b.reset();
  CHECK(arena.allocate(1_MiB, 64_KiB)->base() == first);
}

TEST(an_arena_keeps_to_the_alignment) {
  const auto driver = make_driver();
  Arena arena(*driver, 8_MiB, 8_MiB, 4_KiB);
  const auto small = arena.allocate(4_KiB, 4_KiB), large = arena.allocate(1_MiB, 1_MiB);
  const Address aligned = large->base();
  CHECK(aligned.value % (1_MiB).count == 0);
  CHECK(arena.contains(aligned));
}

TEST(a_budget_is_all_or_nothing_and_presses_the_others) {
  LocalBudget budget(10_MiB);
  Bytes heard_a, heard_b;
  const auto a = budget.listen([&](Bytes size) { heard_a += size; });
  const auto b = budget.listen([&](Bytes size) { heard_b += size; });
  CHECK(budget.take(8_MiB, a, true));
  CHECK(!budget.take(4_MiB, b, true));
  CHECK(budget.taken() == 8_MiB);
  CHECK(heard_a == 2_MiB && heard_b == Bytes{});
  CHECK(!budget.take(11_MiB, b, true));  // could never fit: nobody is bothered
  CHECK(heard_a == 2_MiB);
  budget.set_limit(5_MiB);
  CHECK(heard_a == 5_MiB && heard_b == 3_MiB);
  budget.stop_listening(a);
  budget.give_back(8_MiB);
  CHECK(budget.taken() == Bytes{});
}

TEST(illegal_transitions_raise) {
  MappedBytes sums, owners;
  Sharing sharing;
  PageTable table({4}, 64_KiB, sums, owners, sharing);
  CHECK_THROWS(InvariantViolation, "Unmapped to Resident", table.move({0}, VirtualState::resident));
  CHECK_THROWS(InvariantViolation, "cannot be needed", table.set_need({0}, Need::kept));
  table.move({0}, VirtualState::mapping);
  table.move({0}, VirtualState::resident);
  table.set_need({0}, Need::kept);
  CHECK(sums.kept() == 64_KiB && owners == sums && table.resident() == Pages{1});
  CHECK_THROWS(InvariantViolation, "Resident to Mapping", table.move({0}, VirtualState::mapping));
  table.move({0}, VirtualState::retiring);
  CHECK(sums.kept() == Bytes{} && table.resident() == Pages{0} && table.in_use() == Pages{1});
}

TEST(contents_are_recycled) {
  Contents contents;
  CHECK_THROWS(InvariantViolation, "without room", contents.add({7}));
  contents.reserve(1);
  contents.reserve(1);  // for somebody else
  const ContentId a = contents.add({7});
  CHECK(contents[a].page == PhysicalPageId{7} && contents.live() == 1);
  contents.drop(a);
  CHECK(contents.live() == 0);
  CHECK_THROWS(InvariantViolation, "dropped twice", contents.drop(a));
  CHECK(contents.add({8}) == a);
}

TEST(a_window_gets_a_run_with_free_pages_first) {
  PhysicalPages pages(1_MiB, true);
  CHECK(pages.pages_per_run(64_KiB) == Pages{16});
  CHECK(PhysicalPages(1_MiB, false).pages_per_run(64_KiB) == Pages{1});
  const RunId warm = pages.take_run(64_KiB, {});
  const RunId cold = pages.take_run(64_KiB, {});
  const PhysicalPageId page = pages.page_at(warm, 3);
  CHECK(pages.place_of(page).offset_bytes == 3 * (64_KiB).count);
  pages.move(page, PhysicalState::busy);
  pages.move(page, PhysicalState::mapped);
  CHECK_THROWS(InvariantViolation, "given back", pages.give_back_run(warm));
  pages.move(page, PhysicalState::busy);
  pages.move(page, PhysicalState::free);
  pages.give_back_run(warm);
  pages.give_back_run(cold);
  CHECK(pages.free_bytes() == 64_KiB);
  CHECK(pages.take_run(64_KiB, {}) == warm);
  CHECK_THROWS(InvariantViolation, "cannot go", pages.move(page, PhysicalState::mapped));
}

TEST(a_window_gets_no_run_whose_pages_were_released) {
  PhysicalPages pages(1_MiB, false);
  const RunId kept = pages.take_run(64_KiB, {}), released = pages.take_run(64_KiB, {});
  for (const RunId run : {kept, released}) {
    pages.move(pages.page_at(run, 0), PhysicalState::busy);
    pages.move(pages.page_at(run, 0), PhysicalState::free);
    pages.give_back_run(run);
  }
  pages.move(pages.page_at(released, 0), PhysicalState::releasing);
  pages.move(pages.page_at(released, 0), PhysicalState::absent);
  CHECK(pages.take_run(64_KiB, {}) == kept);
}

TEST(another_kind_never_sees_the_bytes) {
  TestPool test(1_MiB);
  auto mine = test.reserve(1_MiB, 1, 1);
  map(*mine, 0, 16);
  std::memset(bytes_at(*mine, {}), 0xAB, (1_MiB).count);
  mine.reset();
  const auto zeroed = test.pool->counters().pages_zeroed.get();
  auto theirs = test.reserve(1_MiB, 1, 2);
  const ByteRange written{100_KiB, 8_KiB};  // write intent: left alone, the rest of the page is zeroed
  MapOptions options;
  options.overwritten = std::span(&written, 1);
  map(*theirs, 0, 16, options);
  std::uint64_t foreign = 0;
  for (Bytes i; i < 1_MiB; i += Bytes{1}) foreign += *bytes_at(*theirs, i) != 0;
  CHECK(foreign == written.size.count);
  test.pool->zero(theirs->reservation(), written.offset, written.size);  // the write failed
  CHECK(*bytes_at(*theirs, written.offset) == 0);
  CHECK(test.pool->counters().pages_zeroed.get() == zeroed + 16);
}

TEST(zeroed_reservations_start_zeroed_and_are_not_adopted) {
  TestPool test(1_MiB);
  auto first = test.reserve(1_MiB, 1, 0, true);
  map(*first, 0, 16);
  std::memset(bytes_at(*first, {}), 1, (1_MiB).count);
  first.reset();
  auto second = test.reserve(1_MiB, 1, 0, true);
  map(*second, 0, 16);
  for (Bytes i; i < 1_MiB; i += 64_KiB) CHECK(*bytes_at(*second, i) == 0);
  CHECK(test.pool->counters().reservations_adopted.get() == 0);
}

TEST(pressure_from_a_shared_budget_reaches_the_other_pool) {
  auto budget = std::make_shared<LocalBudget>(2_MiB);
  TestPool one(2_MiB, budget);
  TestPool two(2_MiB, budget);
  auto idle = one.reserve(2_MiB);
  map(*idle, 0, 32);
  idle.reset();
  auto lease = two.reserve(2_MiB);
  CHECK_THROWS(OutOfPages, "out of pages", map(*lease, 0, 16));
  one.settle();
  map(*lease, 0, 16);
  CHECK(one.pool->stats().created == 1_MiB);
  one.pool->check();
  two.pool->check();
}

TEST(a_closed_pool_gives_back_and_refuses) {
  TestPool test(2_MiB);
  auto used = test.reserve(1_MiB);
  auto idle = test.reserve(1_MiB, 2);
  map(*used, 0, 4);
  map(*idle, 0, 4);
  idle.reset();
  test.pool->close();
  CHECK(test.pool->stats().created == 256_KiB);
  *bytes_at(*used, {}) = 1;  // still valid
  CHECK_THROWS(Closed, "closed", map(*used, 4, 1));
  CHECK_THROWS(Closed, "closed", test.reserve(1_MiB));
  used.reset();
  CHECK(test.pool->stats().created == Bytes{});
  CHECK(test.budget->taken() == Bytes{});
}

TEST(memory_of_another_shape_is_recycled_not_made_anew) {
  TestPool test(4_MiB);
  auto first = test.reserve(4_MiB);
  map(*first, 0, 64);
  first.reset();
  auto second = test.reserve(2_MiB);
  map(*second, 0, 5);  // less than a window: the rest of the run must come along
  map(*second, 16, 16);
  map(*second, 5, 11);
  CHECK(test.pool->counters().pages_created.get() == 64);
  CHECK(test.pool->counters().pages_released.get() == 0);
  test.pool->check();
}

TEST(pages_in_runs_that_are_too_empty_are_exchanged) {
  TestPool test(16_MiB);
  if (test.pool->driver().capabilities().merges_neighbours) {
    auto thin = test.reserve(64_MiB), thick = test.reserve(8_MiB);
    for (std::uint32_t window = 0; window < 64; ++window) map(*thin, 16 * window, 2);
    map(*thick, 0, 128);
    thin.reset();
    thick.reset();
    auto next = test.reserve(10_MiB);
    map(*next, 0, 160);
    CHECK(test.pool->stats().mapped == 16_MiB);  // no more was unmapped than needed
    test.pool->check();
  }
}

TEST(address_space_is_taken_back_from_idle_reservations) {
  TestPool test(4_MiB);
  auto large = test.reserve(5_GiB);
  map(*large, 0, 1);
  CHECK_THROWS(OutOfPages, "address space", test.reserve(4_GiB));
  large.reset();
  auto other = test.reserve(4_GiB);
  map(*other, 0, 1);
  test.pool->check();
}

TEST(addresses_of_an_idle_reservation_are_waited_for_while_work_uses_it) {
  TestPool test(4_MiB);
  auto large = test.reserve(5_GiB);
  map(*large, 0, 1);
  test.faults->hold_events(true);
  test.pool->epochs().step({});
  large.reset();
  CHECK_THROWS(OutOfPages, "address space", test.reserve(4_GiB));  // only the caller can end the epoch
  test.pool->epochs().end({});
  std::atomic<bool> reserved{false};
  std::thread waiting([&] {
    const auto other = test.reserve(4_GiB);
    reserved = true;
  });
  std::this_thread::sleep_for(std::chrono::milliseconds(10));
  CHECK(!reserved);
  test.faults->hold_events(false);
  waiting.join();
  test.pool->check();
}

#ifndef NDEBUG
TEST(a_wait_that_nothing_ends_says_so_in_a_debug_build) {
  struct LeapingClock final : Clock {
    Nanoseconds now() const noexcept override { return time; }
    void wait(std::unique_lock<std::mutex>&, std::condition_variable&, Nanoseconds) override {
      time += std::chrono::seconds(10);
    }
    Nanoseconds time{0};
  };
  Ground ground(make_driver(), std::make_shared<LocalBudget>(1_MiB), std::make_shared<LeapingClock>());
  Wait wait(ground, "nothing");
  std::unique_lock lock(ground.mutex);
  for (int i = 0; i < 7; ++i) wait.moment(lock);
  CHECK_THROWS(InvariantViolation, "waited a minute for this: nothing", wait.moment(lock));
}
#endif
