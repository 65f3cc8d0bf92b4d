// Sequences that begin with the tokens of others where memory is short, or where windows have moved on.
#include "check.h"
#include "prefix_fixture.h"

using namespace vmm;

namespace {

/// Pages of a slot that are mapped in each extent of the first lease.
std::vector<std::uint64_t> mapped(const PrefixCache& test, std::uint32_t slot, std::size_t lease = 0) {
  std::vector<std::uint64_t> out;
  for (std::uint64_t e = 0; e < test.options.extents; ++e) {
    std::uint64_t count = 0;
    for (std::uint32_t i = 0; i < 16; ++i)
      count += state_of(*test.leases[lease],
                        static_cast<std::uint32_t>(16 * (slot * test.options.extents + e) + i)) ==
               VirtualState::resident;
    out.push_back(count);
  }
  return out;
}

using Mapped = std::vector<std::uint64_t>;

/// Somebody else who needs so many pages, for as long as this lives.
struct Eater {
  Eater(PrefixCache& test, std::uint64_t pages) : lease(test.reserve(4_MiB)) {
    map(*lease, 0, pages);
    test.pool->check();
  }
  std::shared_ptr<Lease> lease;
};

}  // namespace

TEST(closed_sequences_give_memory_back_the_one_used_longest_ago_first_and_from_its_end) {
  PrefixCache test({.budget = 64_KiB * 16});
  const TokenList a = tokens_from(0, 256), b = tokens_from(1'000, 256), c = tokens_from(2'000, 256);
  const Sequence first = test.serve(a), second = test.serve(b), third = test.serve(c);
  for (const Sequence* each : {&second, &third, &first}) test.close(*each);
  test.end();
  CHECK(test.pool->stats().reclaimable == 64_KiB * 12);
  std::vector<Eater> eaters;
  eaters.reserve(3);
  eaters.emplace_back(test, 5);
  CHECK(mapped(test, first.slot) == Mapped{4} && mapped(test, third.slot) == Mapped{4});
  CHECK(mapped(test, second.slot) == Mapped{3});
  eaters.emplace_back(test, 5);
  CHECK(mapped(test, second.slot) == Mapped{0} && mapped(test, third.slot) == Mapped{2});
  CHECK(mapped(test, first.slot) == Mapped{4});
  CHECK(test.cache->open_prompt({b, ""}, {}, {}).cached == Tokens{});  // lies in the free slot
  const Sequence short_one = test.open(joined(c, {1}));
  CHECK(short_one.cached == 128);
  const Sequence whole = test.open(joined(a, {1}));
  CHECK(whole.cached == 256);
}

/// Whoever began with it keeps it in a slot of its own, so what follows in the old slot is not used by that.
TEST(what_was_used_of_a_closed_sequence_goes_last_and_its_end_first) {
  PrefixCache test({.budget = 64_KiB * 13});
  const TokenList a = tokens_from(0, 256), b = tokens_from(1'000, 256);
  test.leave(a);
  test.leave(b);
  const Sequence used = test.open(first_of(a, 129));  // in a slot of its own
  CHECK(used.cached == 128);
  test.close(used);
  test.end();
  const Eater eater(test, 8);
  CHECK(test.found(joined(a, {1})) == 128);
  CHECK(test.found(joined(b, {1})) == 192);
}

/// Two that share 128 tokens: the pages of these go after those of either that follow.
TEST(a_shared_beginning_stays_as_long_as_any_that_follows_it) {
  for (const bool first_is_used_last : {true, false}) {
    PrefixCache test({.budget = 64_KiB * 12});
    const TokenList head = tokens_from(0, 128);
    const TokenList a = joined(head, tokens_from(1'000, 128)), b = joined(head, tokens_from(2'000, 128));
    const Sequence first = test.serve(a), second = test.serve(b);
    CHECK(second.cached == 128 && test.pool->stats().saved == 64_KiB * 2);
    test.close(first_is_used_last ? second : first);
    test.close(first_is_used_last ? first : second);
    test.end();
    const std::uint32_t older = first_is_used_last ? second.slot : first.slot;
    const std::uint32_t newer = first_is_used_last ? first.slot : second.slot;
    std::vector<Eater> eaters;
    eaters.reserve(6);
    eaters.emplace_back(test, 6);
    for (const std::uint64_t more : {0, 1, 2, 3, 4}) {
      if (more != 0) eaters.emplace_back(test, 1);
      CHECK(mapped(test, older)[0] == std::max<std::uint64_t>(2, 4 - more));
      CHECK(mapped(test, newer)[0] == std::min<std::uint64_t>(4, 6 - more));
    }
    CHECK(test.found(joined(a, {1})) == 128 && test.found(joined(b, {1})) == 128);
    eaters.emplace_back(test, 1);
    CHECK(mapped(test, first.slot) == Mapped{1} && mapped(test, second.slot) == Mapped{1});
    CHECK(test.found(joined(a, {1})) == 64 && test.found(joined(b, {1})) == 64);
  }
}

TEST(a_beginning_that_a_running_sequence_has_is_not_given_back) {
  PrefixCache test({.budget = 64_KiB * 8});
  const TokenList head = tokens_from(0, 128);
  const Sequence first = test.serve(joined(head, tokens_from(1'000, 128)));
  const Sequence running = test.open(joined(head, {5}));
  test.close(first);
  test.end();
  const Eater eater(test, 6);
  CHECK(mapped(test, first.slot) == Mapped{2} && test.intact(running));
  CHECK(test.found(joined(first.tokens, {1})) == 128);
}

TEST(all_extents_and_leases_of_a_slot_give_up_the_same_tokens) {
  for (const std::size_t leases : {1, 2, 3}) {
    const std::uint64_t lists = 2 * leases;
    PrefixCache test({.budget = 64_KiB * (4 * lists), .extents = 2, .leases = leases});
    const TokenList a = tokens_from(0, 256);
    test.leave(a);
    const Eater eater(test, 2 * lists);
    for (std::size_t i = 0; i < leases; ++i) CHECK((mapped(test, 0, i) == Mapped{2, 2}));
    CHECK(test.found(joined(a, {1})) == 128);
  }
}

TEST(a_slot_that_lost_pages_is_found_with_fewer_tokens_and_serves_them) {
  PrefixCache test({.budget = 64_KiB * 8});
  const TokenList a = tokens_from(0, 256);
  test.leave(a);
  {
    const Eater eater(test, 6);
    Sequence next = test.open(joined(a, {1}));
    CHECK(next.cached == 128);
    test.close(next);
    test.end();
  }
  Sequence next = test.open(joined(a, {1}));
  CHECK(next.cached == 128);
  test.step(next, tokens_from(900, 200));
  test.commit(next, 128, 328);
  CHECK(test.intact(next) && test.found(joined(a, {1})) == 128);
}

/// One page of a shared content is lost, of one extent, and the others of those tokens are not.
TEST(what_is_left_of_lost_tokens_is_not_written_to_by_two) {
  for (const bool two_leases : {false, true}) {
    PrefixCache test(
        {.budget = 64_KiB * 24, .slots = 6, .extents = two_leases ? 1U : 2U, .leases = two_leases ? 2U : 1U});
    const TokenList a = tokens_from(0, 192);
    const Sequence first = test.serve(a), second = test.open(joined(a, {1}));
    CHECK(second.cached == 192 && test.pool->stats().saved == 64_KiB * 6);
    test.close(first);
    test.close(second);
    test.end();
    test.pool->trim(1_MiB, false, Need::none);
    test.budget->set_limit(64_KiB * 6);
    {
      const Eater eater(test, 1);
    }
    test.budget->set_limit(64_KiB * 24);
    CHECK(test.pool->stats().saved == 64_KiB * 5);
    std::vector<Sequence> others;
    for (int i = 1; i < 5; ++i) {  // two in slots of their own, two in those of the closed ones
      others.push_back(test.open(joined(a, {1})));
      CHECK(others.back().cached == 128);
      test.step(others.back(), tokens_from(1'000 * i, 64));
      for (const Sequence& each : others) CHECK(test.intact(each));
    }
    CHECK(test.stats().adopted == 2);
  }
}

TEST(who_comes_into_a_slot_that_lost_tokens_writes_to_nobody_else_s) {
  for (const bool two_leases : {false, true}) {
    PrefixCache test(
        {.budget = 64_KiB * 24, .slots = 2, .extents = two_leases ? 1U : 2U, .leases = two_leases ? 2U : 1U});
    const TokenList a = tokens_from(0, 192);
    const Sequence first = test.serve(a), second = test.open(joined(a, {1}));
    test.close(first);
    test.close(second);
    test.end();
    test.pool->trim(1_MiB, false, Need::none);
    test.budget->set_limit(64_KiB * 6);
    {
      const Eater eater(test, 1);
    }
    test.budget->set_limit(64_KiB * 24);
    Sequence third = test.open(joined(a, {1})), fourth{test.cache->open({192}, {192}, {}), {}};
    CHECK(third.cached == 128 && test.stats().cached_slots == 0);
    test.step(fourth, tokens_from(1'000, 192));
    test.step(third, tokens_from(2'000, 64));
    CHECK(test.intact(third) && test.intact(fourth));
    test.end();
    test.step(fourth, tokens_from(3'000, 10));
    CHECK(test.intact(third) && test.intact(fourth));
  }
}

TEST(without_memory_for_what_must_be_copied_a_sequence_begins_anew_and_nothing_is_lost) {
  PrefixCache test({.budget = 64_KiB * 4});
  const TokenList a = tokens_from(0, 200);
  Sequence first = test.serve(a);                       // has all memory: three pages and a piece
  CHECK(test.found(a) == 192);                          // whole pages
  const Sequence second = test.open(first_of(a, 180));  // 176 are not
  CHECK(second.cached == 0 && test.cache->open_slots() == 2 && test.intact(first));
  test.close(second);
  test.end();
  CHECK(test.pool->stats().saved == Bytes{} && test.pool->stats().kept == 64_KiB * 4);
  CHECK(test.intact(first));
  test.truncate(first, 180);
  test.close(first);
  test.end();
  CHECK(test.found(first_of(a, 180)) == 176);
}

TEST(without_memory_for_the_tail_a_closed_slot_is_not_adopted) {
  PrefixCache test({.budget = 64_KiB * 3, .tail = {64}});
  const TokenList a = tokens_from(0, 128);
  test.leave(a);
  {
    const Eater eater(test, 1);
    const Sequence none = test.open(joined(a, {1}));
    CHECK(none.cached == 0 && test.pool->stats().kept == 64_KiB && test.stats().adopted == 0);
    test.close(none);
    test.end();
  }
  test.leave(a);
  CHECK(test.found(joined(a, {1})) == 128);
}

TEST(a_measurement_takes_nothing_from_closed_sequences) {
  PrefixCache test({.budget = 64_KiB * 20});
  const TokenList a = tokens_from(0, 512), b = tokens_from(1'000, 256);
  test.leave(a);
  const Sequence running = test.serve(b);
  const Sequence next = test.open(joined(b, {1}));
  CHECK(next.cached == 256 && test.stats().aliased == 1 && test.intact(running));
  CHECK(test.found(joined(a, {1})) == 512);
}

TEST(a_running_slot_whose_window_moved_on_serves_only_lengths_that_it_can) {
  for (const bool slow : {false, true}) {
    PrefixCache test({.leases = 2, .window = {80}, .slow_maps = slow});
    const TokenList a = tokens_from(0, 400);
    Sequence running = test.open(a);
    for (const std::size_t to : {100, 200, 300, 400}) {
      const std::size_t from = running.tokens.size();
      test.step(running, tokens_from(static_cast<PrefixIndex::Token>(from), to - from));
      test.commit(running, from, to);
    }
    // Of the first lease, tokens from 220 on are kept, the pages before are there still.
    CHECK(test.found(joined(a, {1})) == 400);
    CHECK(test.found(first_of(a, 330)) == 320);
    CHECK(test.found(first_of(a, 150)) == 0);
    CHECK(test.found(first_of(a, 100)) == 0);
    Sequence next = test.open(first_of(a, 330));
    CHECK(next.cached == 320);
    test.step(next, tokens_from(1'000, 100));
    test.step(running, tokens_from(2'000, 100));
    CHECK(test.intact(running) && test.intact(next));
  }
}

TEST(a_closed_slot_whose_window_moved_on_serves_what_is_there) {
  PrefixCache test({.leases = 2, .window = {80}});
  const TokenList a = tokens_from(0, 400);
  Sequence running = test.open(a);
  for (const std::size_t to : {100, 200, 300, 400})
    test.step(running, tokens_from(static_cast<PrefixIndex::Token>(running.tokens.size()),
                                   to - running.tokens.size()));
  test.commit(running, 0, 400);
  test.close(running);
  test.end();
  CHECK(test.found(first_of(a, 150)) == 144);  // the pages behind the window are there still
  test.pool->trim(64_KiB);
  const Sequence whole = test.open(joined(a, {1}));
  CHECK(whole.cached >= 320);
}

/// The window of a length reaches a page that the window of a longer one does not.
TEST(a_length_that_is_rounded_down_to_a_block_still_has_all_that_its_window_needs) {
  PrefixCache test({.budget = 64_KiB * 8, .record = Bytes{1'000}, .window = {65}});
  const TokenList a = tokens_from(0, 224);
  Sequence running = test.open(a);
  test.step(running, first_of(a, 144));
  test.step(running, tokens_from(144, 60));
  test.end();
  {
    const Eater eater(test, 5);  // takes page 0, which the window has left
  }
  CHECK(state_of(*test.leases[0], 16 * running.slot) == VirtualState::unmapped);
  test.commit(running, 0, 144);
  test.close(running);
  test.end();
  {
    const Eater eater(test, 7);  // takes page 2, with tokens 131 to 143
  }
  CHECK(state_of(*test.leases[0], 16 * running.slot + 1) == VirtualState::resident);
  CHECK(state_of(*test.leases[0], 16 * running.slot + 2) == VirtualState::unmapped);
  CHECK(test.found(a) == 0);
}
