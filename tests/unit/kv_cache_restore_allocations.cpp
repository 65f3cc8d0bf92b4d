// Every allocation of a sequence that begins with tokens from a tier, and of one that leaves them there, is
// refused once. Nothing may be half done. (The stand-in's own books need memory, too, so this is for the host
// driver.)
#include <optional>

#include "check.h"
#include "parked_fixture.h"
#include "refused_allocations.h"

using namespace vmm;

namespace {

/// Refuses each allocation of open_prompt() in turn, for a prompt that begins with so many of the tokens that
/// are in the tier.
void refuse_all_of_open(std::uint64_t beginning) {
  const TokenList tokens = tokens_from(100, 3 * tokens_a_page);
  const TokenList prompt = joined(first_of(tokens, beginning), tokens_from(9'000, 10));
  bool over = false;
  int times = 0;
  for (int n = 1; !over && n < 1'000; ++n) {
    Restored test({.write_through = true});
    test.leave_copies(tokens);
    test.fill_memory();
    std::optional<KvCache::Opened> opened;
    const int before = allocations;
    const bool refused = is_refused(n, [&] { opened = test.cache->open_prompt({prompt, ""}, {}, {}); });
    over = !reached(before, n);
    times += refused;
    CHECK(refused == !opened);
    CHECK(test.cache->open_slots() == (refused ? 0 : 1));
    Sequence made;
    if (opened)
      made = {opened->slot, first_of(prompt, opened->cached.count), opened->cached.count};
    else
      made = test.open(prompt);
    // Where more was refused when the sequence had the tokens already, it has ended with them.
    CHECK(made.cached == beginning || refused);
    CHECK(test.is_whole(made));
    test.close(made);
    test.end();
    CHECK(test.figures().lost == 0);
  }
  CHECK(over && times > 5);
}

/// Refuses each allocation of close() in turn, of a sequence that runs, or is parked and away.
void refuse_all_of_close(bool away) {
  bool over = false;
  for (int n = 1; !over && n < 1'000; ++n) {
    Restored test({.write_through = true});
    const TokenList tokens = tokens_from(100, 3 * tokens_a_page);
    const Sequence made = test.serve(tokens);
    if (away) {
      test.park(made);
      test.end();
      CHECK(test.are_cleaned(3));
      test.fill_memory();
      CHECK(!test.cache->ready(made.slot));
    }
    const int before = allocations;
    is_refused(n, [&] { test.cache->close(made.slot, {}); });
    over = !reached(before, n);
    if (test.cache->open_slots() == 1) test.cache->close(made.slot, {});
    CHECK(test.cache->open_slots() == 0);
    test.end();
    test.fill_memory();
    Sequence again = test.open(joined(tokens, {1}));
    CHECK(test.is_whole(again));
    test.close(again);
    test.end();
  }
  CHECK(over);
}

}  // namespace

TEST(who_has_no_memory_for_the_books_opens_nothing_from_a_tier) {
  if (on_cuda()) return;
  refuse_all_of_open(3 * tokens_a_page);
  refuse_all_of_open(80);
}

TEST(a_close_without_memory_for_the_books_of_a_tier_can_be_tried_again) {
  if (on_cuda()) return;
  refuse_all_of_close(false);
  refuse_all_of_close(true);
}
