// What was announced while others' work held the memory: it is asked for again when that work is over.
#include "base/error.h"
#include "check.h"
#include "engine/kv_cache.h"
#include "full_pool.h"

using namespace vmm;

/// What is closed in an epoch may be had when it is over.
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

/// Work that is late ends without telling anybody: then the pager looks again by itself, but only then.
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

/// A step that fails has ended an epoch all the same.
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
