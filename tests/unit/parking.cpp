// Sequences that are parked: what they keep, what they lose, and who waits.
#include <atomic>
#include <memory>
#include <optional>
#include <thread>
#include <vector>

#include "check.h"
#include "parked_fixture.h"

using namespace vmm;

TEST(more_sequences_than_memory_take_turns_and_lose_nothing) {
  Parked test;
  std::vector<Sequence> all;
  for (int i = 0; i < 5; ++i) all.push_back(test.idle(3));  // fifteen pages in eight
  for (int turn = 0; turn < 3; ++turn)
    for (Sequence& each : all) {
      test.more(each);
      CHECK(test.intact(each));
      test.park(each);
    }
  const ParkingFigures figures = test.figures();
  CHECK(figures.loaded >= 9 && figures.lost == 0 && figures.loads >= 3);
}

TEST(a_sequence_that_nobody_pushed_out_is_there_at_once) {
  Parked test;
  Sequence idle = test.idle(3);
  CHECK(test.cache->ready(idle.slot) && test.figures().dirty == 3);
  test.more(idle);
  CHECK(test.figures().dirty == 0);
  CHECK(test.intact(idle) && test.figures().loads == 0 && test.figures().cleaned == 0);
}

TEST(what_is_prefetched_keeps_nobody_waiting) {
  Parked test;
  Sequence idle = test.idle(3);
  test.push_out();
  CHECK(!test.cache->ready(idle.slot) && test.figures().dirty == 0);
  CHECK(test.is_prefetched(idle));
  test.more(idle);
  CHECK(test.intact(idle));
  CHECK(test.figures().loads == 1 && test.figures().waited == Nanoseconds{0});
}

TEST(how_long_a_load_takes_is_known_after_the_first) {
  std::atomic<bool> hangs = false;
  const auto calls = std::make_shared<TestCalls>();
  Parked test({.file = 8_MiB, .calls = calls});
  Sequence first = test.idle(2), second = test.idle(4);
  CHECK(test.cache->load_time(first.slot) == Nanoseconds{});
  test.push_out(8);
  CHECK(!test.cache->load_time(first.slot));
  CHECK(test.is_prefetched(first) && test.cache->load_time(first.slot) == Nanoseconds{});
  const Nanoseconds alone = test.cache->load_time(second.slot).value();
  CHECK(alone.count() > 0);
  test.more(first);
  test.park(first);
  test.push_out(8);
  const Nanoseconds less = test.cache->load_time(first.slot).value();
  hang(*calls, "preadv", hangs);
  hangs = true;
  const auto slot = static_cast<std::int32_t>(second.slot);
  test.cache->prefetch(std::span(&slot, 1), {});
  CHECK(comes([&] { return test.is_moving(); }));
  CHECK(test.cache->load_time(first.slot).value() > less);  // it would come after the other one
  hangs = false;
  CHECK(comes([&] { return test.cache->ready(second.slot); }));
  CHECK(test.cache->load_time(second.slot) == Nanoseconds{});
  test.more(first);
  CHECK(test.intact(first) && test.cache->load_time(first.slot) == Nanoseconds{});
}

TEST(what_was_prefetched_goes_again_when_others_need_the_memory) {
  Parked test;
  Sequence idle = test.idle(5);
  test.push_out();
  CHECK(test.is_prefetched(idle));
  test.push_out(8);
  CHECK(!test.cache->ready(idle.slot));
  test.more(idle);
  CHECK(test.intact(idle));
}

TEST(who_is_wanted_first_does_not_wait_behind_those_that_are_there_already) {
  Parked test;
  Sequence first = test.idle(5), later = test.idle(4);
  test.push_out(8);
  CHECK(test.is_prefetched(later, std::chrono::hours(2)));
  CHECK(test.is_prefetched(first, std::chrono::hours(1)) && !test.cache->ready(later.slot));
  test.more(first);
  CHECK(test.intact(first));
  test.park(first);
  test.more(later);
  CHECK(test.intact(later));
}

TEST(pages_that_were_not_written_since_are_not_copied_again) {
  Parked test;
  Sequence idle = test.idle(3);
  test.push_out();
  const std::uint64_t cleaned = test.figures().cleaned;
  CHECK(cleaned == 3);
  test.more(idle);  // in a page of its own
  test.park(idle);
  test.push_out(8);
  CHECK(test.figures().cleaned == cleaned + 1);
  test.more(idle);
  CHECK(test.intact(idle));
}

TEST(a_sequence_that_is_cut_back_writes_over_no_good_copy) {
  Parked test;
  Sequence idle = test.idle(3);
  test.push_out();
  test.truncate(idle, tokens_a_page + 5);  // brings it back
  CHECK(test.intact(idle));
  test.step(idle, tokens_from(77, 100));
  test.park(idle);
  test.push_out();
  test.more(idle);
  CHECK(test.intact(idle));
}

TEST(forks_of_what_is_parked_have_its_tokens) {
  Parked test;
  const Sequence idle = test.idle(3);
  test.push_out();
  Sequence child = test.fork(idle);
  CHECK(test.intact(idle) && test.intact(child));
  test.park(idle);
  test.more(child);
  test.push_out(4);
  CHECK(test.intact(child));
}

TEST(who_waits_for_a_tier_leaves_what_was_mapped_ahead_where_it_is) {
  std::atomic<bool> hangs = true;
  const auto calls = std::make_shared<TestCalls>();
  Parked test({.leases = 2, .file = 8_MiB, .calls = calls});  // so a page of tokens needs two pages
  hang(*calls, "pwritev", hangs);
  Sequence idle = test.idle(2), other = test.open({}), ahead = test.open({});
  test.end();
  test.cache->announce_tokens(ahead.slot, {tokens_a_page});
  CHECK(
      comes([&] { return Slots::Needs(test.cache->slots()).ready(ahead.slot, {tokens_a_page}).count != 0; }));
  const Counter& mapped = test.pool->counters().pages_mapped_ahead;
  std::thread step([&] { test.step(other, tokens_from(7, 3 * tokens_a_page)); });
  CHECK(comes([&] { return test.is_moving(); }));
  std::this_thread::sleep_for(std::chrono::milliseconds(20));
  const std::uint64_t at_first = mapped.get();  // once it tried, and failed, before it waited
  std::this_thread::sleep_for(std::chrono::milliseconds(100));
  CHECK(mapped.get() == at_first);
  hangs = false;
  step.join();
  CHECK(test.intact(other));
  test.close(other);
  test.end();
  test.more(idle);
  CHECK(test.intact(idle));
}

TEST(bad_arguments_change_nothing) {
  Parked test;
  Sequence idle = test.idle(1);
  CHECK_THROWS(InvalidArgument, "is parked", test.park(idle));
  CHECK_THROWS(InvalidArgument, "is parked", test.cache->announce_tokens(idle.slot, {100}));
  const std::int32_t closed[] = {5};
  CHECK_THROWS(InvalidArgument, "slot is 5", test.cache->prefetch(closed, {}));
  CHECK_THROWS(InvalidArgument, "slot is 5", test.cache->ready(5));
  CHECK_THROWS(InvalidArgument, "slot is 5", test.cache->park(5, {}, {}));
  CHECK_THROWS(InvalidArgument, "page_bytes", test.parking->serve(128_KiB));
  PrefixCache without;
  Sequence running = without.serve(tokens_from(1, 20));
  CHECK_THROWS(InvalidArgument, "no tier", without.cache->park(running.slot, {}, {}));
  Sequence empty = test.open({});
  test.park(empty);  // there is nothing to park
  test.park(empty);
}

TEST(whoever_waits_for_a_sequence_hears_that_the_tiers_are_shut) {
  Parked test;
  Sequence idle = test.idle(3);
  test.push_out();
  CHECK(test.parking->shut(std::chrono::seconds(1)));
  CHECK_THROWS(Closed, "closed", test.more(idle));
}
