// What a cache tells somebody who writes it down; and sequences that end while they are parked, whose copies
// stay for others.
#include <atomic>
#include <memory>
#include <thread>
#include <vector>

#include "check.h"
#include "parked_fixture.h"

using namespace vmm;

namespace {

TokenList text(PrefixIndex::Token first, std::uint64_t pages) {
  return tokens_from(first, pages * tokens_a_page);
}

/// A parked sequence with these tokens, which others find; pushed out, or not.
Sequence idle_with(Restored& test, const TokenList& tokens, bool away) {
  const std::uint64_t cleaned = test.figures().cleaned;
  Sequence made = test.serve(tokens);
  test.park(made);
  test.end();
  CHECK(test.are_cleaned(cleaned + tokens.size() / tokens_a_page));
  if (away) test.fill_memory();
  CHECK(test.cache->ready(made.slot) != away);
  return made;
}

}  // namespace

TEST(who_ends_while_parked_leaves_copies_for_others) {
  for (const bool away : {true, false}) {
    Restored test({.write_through = true});
    const TokenList tokens = text(100, 3);
    test.close(idle_with(test, tokens, away));
    CHECK(test.figures().parked == 0 && test.stats().cached_slots == 1);
    test.fill_memory();
    Sequence again = test.open(joined(tokens, {1}));
    CHECK(again.restored && again.cached == 3 * tokens_a_page);
    CHECK(test.is_whole(again) && test.figures().lost == 0);
  }
}

TEST(who_ends_before_it_is_copied_leaves_what_is_on_the_device) {
  Restored test;
  const TokenList tokens = text(100, 3);
  Sequence idle = test.serve(tokens);
  test.park(idle);
  test.close(idle);
  test.end();
  CHECK(test.figures().cleaned == 0);
  Sequence again = test.open(joined(tokens, {1}));
  CHECK(!again.restored && again.cached == 3 * tokens_a_page && test.is_whole(again));
}

TEST(who_ends_while_it_comes_back_leaves_its_copies_and_no_page_that_was_not_read) {
  std::atomic<bool> hangs = false;
  const auto calls = std::make_shared<TestCalls>();
  Restored test({.file = 8_MiB, .write_through = true, .calls = calls});
  hang(*calls, "preadv", hangs);
  const TokenList tokens = text(100, 3);
  const Sequence idle = idle_with(test, tokens, true);
  hangs = true;
  const auto slot = static_cast<std::int32_t>(idle.slot);
  test.cache->prefetch(std::span(&slot, 1), test.clock->now());
  CHECK(comes([&] { return test.is_moving(); }));
  test.close(idle);
  std::thread later([&] {
    std::this_thread::sleep_for(std::chrono::milliseconds(20));
    hangs = false;
  });
  CHECK(test.found(joined(tokens, {1})) == 3 * tokens_a_page);  // it waits until the slot is nobody's
  later.join();
  Sequence again = test.open(joined(tokens, {2}));
  CHECK(test.is_whole(again) && test.figures().lost == 0);
}

TEST(who_ends_with_copies_of_others_before_it_has_read_them_leaves_no_other_bytes) {
  std::atomic<bool> hangs = false;
  const auto calls = std::make_shared<TestCalls>();
  Restored test({.file = 8_MiB, .write_through = true, .calls = calls});
  hang(*calls, "preadv", hangs);
  const TokenList tokens = text(100, 3);
  const Sequence whole = idle_with(test, tokens, true);
  hangs = true;
  const TokenList some = joined(first_of(tokens, 128), {9});
  const Sequence part = test.open(some);
  CHECK(part.restored && part.cached == 128);
  test.close(part);
  test.close(whole);
  hangs = false;
  Sequence again = test.open(joined(tokens, {2})), same = test.open(some);
  CHECK(test.is_whole(again) && same.cached == 128 && test.is_whole(same));
}

TEST(who_ends_while_it_is_copied_is_found_when_that_is_over_and_nobody_finds_what_was_not_committed) {
  std::atomic<bool> hangs = true;
  const auto calls = std::make_shared<TestCalls>();
  Parked test({.file = 8_MiB, .calls = calls});
  hang(*calls, "pwritev", hangs);
  Sequence unknown = test.make(5);
  const TokenList tokens = text(100, 1);
  const Sequence known = test.serve(tokens);
  test.park(unknown);
  test.park(known);
  test.end();
  CHECK(test.parking->make_room(64_KiB * 6));
  CHECK(comes([&] { return test.parking->tiers().figures(0).pending == 6; }));
  test.close(unknown);
  test.close(known);
  CHECK(test.stats().cached_slots == 0);
  std::thread later([&] {
    std::this_thread::sleep_for(std::chrono::milliseconds(20));
    hangs = false;
  });
  CHECK(test.found(joined(tokens, {1})) == tokens_a_page);
  later.join();
  CHECK(test.opens_at_last() && test.cache->open_slots() == 1);
}

TEST(a_copy_that_is_not_good_is_not_found_when_its_sequence_has_ended) {
  auto calls = std::make_shared<TestCalls>();
  Restored test({.file = 8_MiB, .write_through = true, .calls = calls});
  const TokenList tokens = text(100, 3);
  const Sequence idle = idle_with(test, tokens, true);
  calls->refuse = [](const std::string& call, int) { return call == "preadv" ? EIO : 0; };
  CHECK(test.cache->pin(idle.slot) == Tokens{});
  CHECK(test.figures().lost == 3);
  test.cache->unpin(idle.slot);
  test.close(idle);
  CHECK(test.found(joined(tokens, {1})) == 0);
}

TEST(what_is_pinned_is_there_and_stays_parked) {
  Parked test;  // memory for eight pages
  Sequence idle = test.idle(3);
  test.end();
  test.push_out();
  CHECK(!test.cache->ready(idle.slot));
  CHECK(test.cache->pin(idle.slot) == Tokens{3 * tokens_a_page});
  CHECK(test.intact(idle));
  const Sequence running = test.make(1);
  CHECK_THROWS(OutOfPages, "out of pages", test.make(5));
  CHECK(test.intact(idle) && test.cache->parked() == std::vector{idle.slot});
  CHECK(test.cache->pin(running.slot) == test.cache->length(running.slot));
  test.cache->unpin(running.slot);
  test.cache->unpin(idle.slot);
  test.make(7);
  CHECK(!test.cache->ready(idle.slot));
  CHECK_THROWS(OutOfPages, "out of pages", test.cache->pin(idle.slot));
  CHECK_THROWS(InvalidArgument, "slot", test.cache->pin(5));
}

TEST(a_cache_tells_what_was_committed_and_what_is_found_the_oldest_first) {
  Restored test({.write_through = true});
  const TokenList first = text(100, 2), second = tokens_from(500, 100);
  test.leave(first);
  test.leave(second);
  const Sequence open = test.serve(text(300, 1));
  const std::vector<KvCache::Known> found = test.cache->cached();
  CHECK(found.size() == 2 && found[0].tokens == first);
  CHECK(found[1].tokens == first_of(second, 96));  // whole blocks
  CHECK(test.cache->known(open.slot).tokens == text(300, 1) && test.cache->known(open.slot).salt.empty());
  CHECK_THROWS(InvalidArgument, "slot", test.cache->known(5));
}
