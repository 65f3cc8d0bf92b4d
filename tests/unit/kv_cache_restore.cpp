// Sequences that have ended, and left their tokens in a tier for those who begin with the same.
#include <atomic>
#include <memory>
#include <optional>
#include <vector>

#include "check.h"
#include "parked_fixture.h"

using namespace vmm;

namespace {

TokenList text(PrefixIndex::Token first, std::uint64_t pages) {
  return tokens_from(first, pages * tokens_a_page);
}

/// For a moment; so nothing of it is on the device any more.
void take_all_memory(Restored& test) {
  const std::shared_ptr<Lease> other = test.reserve(2_MiB);
  map(*other, 0, 32);
  const PageRange all{{0}, {32}};
  test.pool->unkeep(other->reservation(), std::span(&all, 1), {});
}

}  // namespace

TEST(what_a_sequence_has_left_comes_back_from_a_tier) {
  Restored test;
  const TokenList tokens = text(100, 3);
  test.leave(tokens);
  CHECK(test.figures().cleaned == 0);
  const std::shared_ptr<Lease> other = test.reserve(2_MiB);
  map(*other, 0, 22);  // memory becomes short
  test.end();
  CHECK(test.are_cleaned(3));
  map(*other, 22, 10);
  const PageRange all{{0}, {32}};
  test.pool->unkeep(other->reservation(), std::span(&all, 1), {});
  Sequence again = test.open(joined(tokens, text(7, 1)));
  CHECK(again.restored && again.cached == 3 * tokens_a_page);
  CHECK(test.stats().restored == 1 && test.stats().found == Tokens{again.cached});
  CHECK(test.is_whole(again));
  CHECK(test.figures().loads == 1 && test.figures().lost == 0);
}

TEST(who_begins_with_some_of_it_has_copies_and_the_rest_stays) {
  std::atomic<bool> hangs = false;
  const auto calls = std::make_shared<TestCalls>();
  Restored test({.file = 8_MiB, .write_through = true, .calls = calls});
  hang(*calls, "preadv", hangs);
  const TokenList tokens = text(100, 3);
  test.leave_copies(tokens);
  test.fill_memory();
  const TokenList some = joined(first_of(tokens, 80), text(9'000, 1));
  hangs = true;
  Sequence part = test.open(some);
  CHECK(part.restored && part.cached == 80);
  // Nobody has read it, and its slot held other bytes: nobody finds them.
  test.close(part);
  test.end();
  part = test.open(some);
  CHECK(part.cached == 80 && part.restored);
  hangs = false;
  Sequence second = test.open(joined(first_of(tokens, 96), text(8'000, 1)));
  CHECK(second.cached == 96 && second.restored);
  CHECK(test.is_whole(part) && test.is_whole(second));
  test.close(part);
  test.close(second);
  test.end();
  Sequence all = test.open(joined(tokens, text(7, 1)));
  CHECK(all.cached == 3 * tokens_a_page && test.is_whole(all));
  CHECK(test.figures().lost == 0);
}

TEST(who_begins_like_a_parked_sequence_has_its_copies) {
  Restored test({.write_through = true});
  const TokenList tokens = text(100, 3);
  Sequence idle = test.serve(tokens);
  test.park(idle);
  test.end();
  CHECK(test.are_cleaned(3));
  test.fill_memory();
  Sequence same = test.open(joined(first_of(tokens, 128), text(7'000, 1)));
  CHECK(same.restored && same.cached == 128);
  CHECK(test.is_whole(same));
  test.close(idle);  // its copies are not only its own
  Sequence third = test.open(joined(first_of(tokens, 128), text(6'000, 1)));
  CHECK(third.cached >= 112);
  CHECK(test.is_whole(third) && test.intact(same));
}

TEST(what_was_left_never_stands_in_the_way_of_those_that_run_or_are_parked) {
  Restored test({.host = 64_KiB * 4, .write_through = true});
  for (PrefixIndex::Token i = 0; i < 4; ++i) test.leave_copies(text(1'000 * i, 2));
  test.fill_memory();
  Sequence idle = test.idle(4);  // the tier has room for it, whatever lies there
  test.end();
  test.fill_memory();
  CHECK(!test.cache->ready(idle.slot));
  CHECK(test.is_whole(idle));
}

TEST(who_opens_while_memory_is_short_evicts_no_copies_as_long_as_a_slot_is_free) {
  Restored test({.write_through = true});
  const TokenList tokens = text(100, 3);
  test.leave_copies(tokens);
  const std::shared_ptr<Lease> other = test.reserve(2_MiB);
  map(*other, 0, 32);
  const TokenList prompt = text(5'000, 8);  // more than any slot is ready for
  const Sequence made = test.open(prompt);
  CHECK(test.stats().cached_slots == 1);
  test.close(made);
  const PageRange all{{0}, {32}};
  test.pool->unkeep(other->reservation(), std::span(&all, 1), {});
  Sequence again = test.open(joined(tokens, text(7, 1)));
  CHECK(again.cached == 3 * tokens_a_page && test.is_whole(again));
}

TEST(of_what_was_left_a_full_tier_keeps_the_newest) {
  Restored test({.host = 64_KiB * 4, .write_through = true});
  for (PrefixIndex::Token i = 0; i < 4; ++i) test.leave_copies(text(1'000 * i, 2));
  test.fill_memory();
  for (PrefixIndex::Token i = 2; i < 4; ++i) {
    Sequence newer = test.open(joined(text(1'000 * i, 2), text(7, 1)));
    CHECK(newer.cached == 2 * tokens_a_page && test.is_whole(newer));
  }
  CHECK(test.found(joined(text(0, 2), text(7, 1))) == 0);
}

TEST(where_it_is_written_through_all_that_is_idle_is_copied_at_once) {
  Restored test({.write_through = true});
  const TokenList tokens = text(100, 3);
  test.leave(tokens);
  Sequence idle = test.idle(2);
  test.end();
  CHECK(comes([&] { return test.figures().cleaned == 5; }));
  test.push_out(16);
  Sequence all = test.open(joined(tokens, text(7, 1)));
  CHECK(all.cached == 3 * tokens_a_page && test.is_whole(all) && test.is_whole(idle));
}

TEST(what_lost_its_copies_while_its_owner_held_it_is_copied_again) {
  Restored test({.host = 64_KiB * 4, .write_through = true});
  test.leave_copies(tokens_from(1, 4 * tokens_a_page));
  const UnitId left{1};
  CHECK(test.parking->hold(left));
  const Sequence other = test.idle(4);  // the tier has no place for it
  test.end();
  CHECK(test.are_cleaned(8));
  test.close(other);
  test.parking->release(left, {});
  CHECK(test.are_cleaned(12));
}

TEST(a_copy_of_what_was_left_that_is_not_good_is_lost_by_name) {
  auto calls = std::make_shared<TestCalls>();
  Restored test({.file = 8_MiB, .write_through = true, .calls = calls});
  const TokenList tokens = text(100, 3);
  test.leave_copies(tokens);
  test.fill_memory();
  calls->refuse = [](const std::string& call, int) { return call == "preadv" ? EIO : 0; };
  Sequence again = test.open(joined(tokens, text(7, 1)));
  CHECK(again.restored);
  try {
    test.more(again);
    CHECK(!"nothing of it can be read");
  } catch (const SequenceLost& error) {
    CHECK(error.losses().front().slot == again.slot);
    again.tokens.resize(error.losses().front().first.count);
    test.step(again, text(7, 1));
    CHECK(test.intact(again));
  }
  CHECK(test.figures().lost != 0);
}

TEST(who_only_guesses_takes_what_has_a_copy_and_leaves_the_rest) {
  std::atomic<bool> hangs = false;
  const auto calls = std::make_shared<TestCalls>();
  Restored test({.file = 8_MiB, .write_through = true, .calls = calls});
  hang(*calls, "pwritev", hangs);
  test.leave_copies(text(100, 3));
  hangs = true;
  const TokenList tokens = text(5'000, 4);
  const Sequence made = test.serve(tokens);
  test.close(made);
  test.end();
  const std::shared_ptr<Lease> other = test.reserve(2_MiB);
  MapOptions guess;
  guess.need = Need::guess;
  guess.wait = false;
  const auto fill = [&] {
    for (std::uint32_t i = 0; i < 32; ++i) {
      const PageRange page{{i}, {1}};
      test.pool->map(other->reservation(), std::span(&page, 1), guess);
    }
  };
  CHECK_THROWS(OutOfPages, "out of pages", fill());
  CHECK(Slots::Needs(test.cache->slots()).holds(made.slot, {256}) == Tokens{256});
  hangs = false;
  CHECK(test.are_cleaned(7));
  test.fill_memory();
  Sequence again = test.open(joined(tokens, {1}));
  CHECK(again.restored && again.cached == 4 * tokens_a_page && test.is_whole(again));
}

TEST(what_is_used_by_nobody_for_a_while_is_copied_and_its_memory_given_back) {
  Restored test;
  const TokenList tokens = text(100, 3);
  test.leave(tokens);
  CHECK(test.figures().cleaned == 0);
  CHECK(comes([&] {
    if (!test.is_moving()) test.clock->advance(PagerOptions{}.idle_time);
    test.pager->wake();
    return test.pool->stats().mapped.count == 0;
  }));
  CHECK(test.figures().cleaned == 3);
  Sequence again = test.open(joined(tokens, {1}));
  CHECK(again.restored && again.cached == 3 * tokens_a_page && test.is_whole(again));
}

TEST(a_slot_whose_pages_a_tier_copies_is_not_given_to_others) {
  std::atomic<bool> hangs = true;
  const auto calls = std::make_shared<TestCalls>();
  Restored test({.slots = 3, .file = 8_MiB, .calls = calls});
  hang(*calls, "pwritev", hangs);
  const TokenList tokens = text(100, 3);
  Sequence others[] = {test.open({}), test.open({})};
  test.leave(tokens);
  test.step(others[0], text(20'000, 16));
  test.step(others[1], text(30'000, 8));
  test.end();
  CHECK(comes([&] {
    test.parking->look();
    return calls->made > 0 && test.is_moving();
  }));
  CHECK_THROWS(InvalidArgument, "max_sequences", test.open({}));  // its pages must not be another's yet
  hangs = false;
  CHECK(test.opens_at_last());
}

TEST(a_driver_that_fails_while_tokens_are_restored_loses_nothing) {
  for (std::int64_t n = 1; n < 100; ++n) {
    Restored test({.write_through = true});
    const TokenList tokens = text(100, 3);
    test.leave_copies(tokens);
    test.fill_memory();
    test.faults->fail_at(n, 1, Fault::error);
    std::optional<Sequence> again;
    try {
      again = test.open(joined(tokens, text(7, 1)));
      test.more(*again);
    } catch (const Error&) {
    }
    const bool reached = !test.faults->last_failed().empty();
    test.faults->fail_at(0, 0, Fault::error);
    CHECK(comes([&] { return !test.pool->reclaiming().refused(); }));
    if (!again) again = test.open(joined(tokens, text(7, 1)));
    CHECK(test.is_whole(*again) && test.figures().lost == 0);
    if (!reached) break;
    CHECK(n < 99);
  }
}

TEST(what_a_window_has_left_comes_back_for_those_that_begin_with_all_of_it) {
  Restored test({.leases = 2, .window = {65}, .write_through = true});
  const TokenList tokens = text(100, 5);
  test.leave(tokens);
  CHECK(test.are_cleaned(1 + 5));  // of the layers with windows, and of the others
  take_all_memory(test);
  // A window of so few tokens reaches what is nowhere any more. Who asks for that loses nothing for others.
  CHECK(test.found(joined(first_of(tokens, 128), text(9'000, 1))) == 0);
  Sequence again = test.open(joined(tokens, text(7, 1)));
  CHECK(again.restored && again.cached == 5 * tokens_a_page);
  CHECK(test.is_whole(again) && test.figures().lost == 0);
}

TEST(who_begins_like_what_is_parked_to_within_its_window_s_last_page_has_its_copies) {
  Restored test({.leases = 2, .window = {65}, .write_through = true});
  const TokenList tokens = text(100, 5);
  Sequence idle = test.serve(tokens);
  test.step(idle, text(6'000, 1));
  test.commit(idle, 5 * tokens_a_page, 6 * tokens_a_page);
  test.step(idle, {1, 2});  // the window has not left its page yet
  test.park(idle);
  test.end();
  CHECK(comes([&] { return test.figures().dirty == 0; }));
  take_all_memory(test);
  CHECK(test.found(joined(tokens, text(7'000, 1))) == 0);
  Sequence same = test.open(joined(joined(tokens, text(6'000, 1)), {9}));
  CHECK(same.restored && same.cached == 6 * tokens_a_page);
  CHECK(test.is_whole(same) && test.is_whole(idle) && test.intact(same));
}
