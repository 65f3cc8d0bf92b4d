// Sequences that have ended, and left their tokens in a tier for those who begin with the same.
#include <atomic>
#include <memory>
#include <optional>
#include <vector>

#include "check.h"
#include "parked_fixture.h"

using namespace vmm;

namespace {

/// Memory for 32 pages.
struct Restored : Parked {
  explicit Restored(PrefixOptions options_ = {}) : Parked(enlarged(std::move(options_))) {}
  static PrefixOptions enlarged(PrefixOptions made) {
    made.budget = 64_KiB * 32;
    return made;
  }
  /// Memory becomes short little by little, so that what was left is copied before it is taken.
  void fill_memory() {
    Sequence others[] = {open({}), open({})};
    for (PrefixIndex::Token i = 0; i < 8; ++i) {
      step(others[i % 2], tokens_from(20'000 + 1'000 * i, 4 * tokens_a_page));
      settle_tier();
    }
    for (const Sequence& each : others) close(each);
    end();
  }
  /// Work is done, and what can be copied has been.
  void settle_tier() {
    end();
    std::this_thread::sleep_for(std::chrono::microseconds(200));
    CHECK(comes([&] { return !is_moving(); }));
  }
  bool is_whole(Sequence& each) {
    more(each);
    return intact(each);
  }
};

TokenList text(PrefixIndex::Token first, std::uint64_t pages) {
  return tokens_from(first, pages * tokens_a_page);
}

}  // namespace

TEST(what_a_sequence_has_left_comes_back_from_a_tier) {
  Restored test;
  const TokenList tokens = text(100, 3);
  test.leave(tokens);
  test.fill_memory();
  CHECK(test.figures().cleaned == 3);
  Sequence again = test.open(joined(tokens, text(7, 1)));
  CHECK(again.restored && again.cached == 3 * tokens_a_page);
  CHECK(test.stats().restored == 1 && test.stats().found == Tokens{again.cached});
  CHECK(test.is_whole(again));
  CHECK(test.figures().loads == 1 && test.figures().lost == 0);
}

TEST(who_begins_with_some_of_it_has_copies_and_the_rest_stays) {
  Restored test;
  const TokenList tokens = text(100, 3);
  test.leave(tokens);
  test.fill_memory();
  const TokenList some = joined(first_of(tokens, 80), text(9'000, 1));
  Sequence part = test.open(some);
  CHECK(part.restored && part.cached == 80);
  // Nobody has read it, and its slot held other bytes: nobody finds them.
  test.close(part);
  test.end();
  part = test.open(some);
  CHECK(part.cached == 80 && part.restored);
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
  Restored test;
  const TokenList tokens = text(100, 3);
  Sequence idle = test.serve(tokens);
  test.park(idle);
  test.fill_memory();
  Sequence same = test.open(joined(first_of(tokens, 128), text(7'000, 1)));
  CHECK(same.restored && same.cached == 128);
  CHECK(test.is_whole(same));
  test.close(idle);  // its copies are not only its own
  Sequence third = test.open(joined(first_of(tokens, 128), text(6'000, 1)));
  CHECK(third.cached >= 112);
  CHECK(test.is_whole(third) && test.intact(same));
}

TEST(what_was_left_never_stands_in_the_way_of_those_that_run) {
  Restored test({.host = 64_KiB * 4});
  for (int i = 0; i < 4; ++i) test.leave(text(1'000 * i, 2));
  test.fill_memory();
  Sequence idle = test.idle(4);  // the tier has room for it, whatever lies there
  test.fill_memory();
  CHECK(test.is_whole(idle));
}

TEST(of_what_was_left_a_full_tier_keeps_the_newest) {
  Restored test({.host = 64_KiB * 4});
  std::vector<TokenList> texts;
  for (int i = 0; i < 4; ++i) {
    texts.push_back(text(1'000 * i, 2));
    test.leave(texts.back());
    test.settle_tier();
  }
  test.fill_memory();
  Sequence newest = test.open(joined(texts.back(), text(7, 1)));
  CHECK(newest.cached == 2 * tokens_a_page && test.is_whole(newest));
}

TEST(a_copy_of_what_was_left_that_is_not_good_is_lost_by_name) {
  auto calls = std::make_shared<TestCalls>();
  Restored test({.file = 8_MiB, .calls = calls});
  const TokenList tokens = text(100, 3);
  test.leave(tokens);
  test.fill_memory();
  Sequence again = test.open(joined(tokens, text(7, 1)));
  CHECK(again.restored);
  calls->refuse = [](const std::string& call, int) { return call == "preadv" ? EIO : 0; };
  // It may have been prefetched before that.
  try {
    test.more(again);
    CHECK(test.intact(again));
  } catch (const SequenceLost& error) {
    CHECK(error.losses().front().slot == again.slot);
    again.tokens.resize(error.losses().front().first.count);
    test.step(again, text(7, 1));
    CHECK(test.intact(again));
  }
}

TEST(a_slot_whose_pages_a_tier_copies_is_not_given_to_others) {
  std::atomic<bool> hangs = true;
  const auto calls = std::make_shared<TestCalls>();
  Restored test({.slots = 3, .file = 8_MiB, .calls = calls});
  hang_writes(*calls, hangs);
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
  CHECK(comes([&] {
    try {
      test.open({});
      return true;
    } catch (const InvalidArgument&) {
      return false;
    }
  }));
}

TEST(a_driver_that_fails_while_tokens_are_restored_loses_nothing) {
  for (std::int64_t n = 1; n < 100; ++n) {
    Restored test;
    const TokenList tokens = text(100, 3);
    test.leave(tokens);
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
