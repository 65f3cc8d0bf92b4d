// Sequences that begin with tokens that others have computed: which they find, and whose bytes they are.
#include "check.h"
#include "prefix_fixture.h"

using namespace vmm;

TEST(a_sequence_begins_with_what_a_running_one_has_committed) {
  PrefixCache test;
  const TokenList tokens = tokens_from(0, 200);
  Sequence first = test.serve(tokens);
  Sequence second = test.open(joined(tokens, {7}));
  CHECK(second.cached == 192 && second.slot != first.slot && test.cache->open_slots() == 2);
  CHECK(test.pool->stats().saved == 64_KiB * 3 && test.stats().aliased == 1);
  CHECK(test.stats().looked_up == Tokens{401} && test.stats().found == Tokens{192});
  test.step(second, tokens_from(1'000, 60));
  CHECK(test.intact(first) && test.intact(second));
  test.step(first, tokens_from(2'000, 100));
  test.truncate(first, 195);
  test.step(first, tokens_from(3'000, 100));
  CHECK(test.intact(first) && test.intact(second));
  test.truncate(second, 100);  // into what is shared
  test.step(second, tokens_from(4'000, 100));
  CHECK(test.intact(first) && test.intact(second));
  test.close(first);
  test.end();
  CHECK(test.intact(second));
}

TEST(at_least_one_token_is_left_to_compute) {
  PrefixCache test;
  const TokenList tokens = tokens_from(0, 64);
  const Sequence running = test.serve(tokens);
  for (const std::size_t count : {0, 1, 15, 16, 17, 32, 33, 63, 64}) {
    const Sequence made = test.open(first_of(tokens, count));
    CHECK(made.cached == (count == 0 ? 0 : (count - 1) / 16 * 16));
    CHECK(test.cache->open_slots() == 2);
    test.close(made);
    test.end();
  }
  CHECK(test.found(joined(tokens, {1})) == 64 && test.intact(running));
}

TEST(only_what_was_committed_is_found_and_only_in_whole_blocks) {
  PrefixCache test;
  const TokenList tokens = tokens_from(0, 100);
  Sequence running = test.open(tokens);
  test.step(running, tokens);
  std::uint64_t committed = 0;
  for (const std::uint64_t more : {0, 15, 1, 20, 11, 1, 40, 12}) {
    test.commit(running, committed, committed + more);
    committed += more;
    CHECK(test.found(joined(tokens, {1})) == committed / 16 * 16);
  }
  CHECK(committed == 100 && test.intact(running));
}

TEST(more_than_was_stepped_is_not_committed) {
  PrefixCache test;
  const TokenList tokens = tokens_from(0, 100);
  Sequence running = test.open(tokens);
  CHECK_THROWS(InvalidArgument, "tokens has 1; the sequence has 0", test.cache->commit(running.slot, {{5}}));
  test.step(running, first_of(tokens, 50));
  test.commit(running, 0, 30);
  CHECK_THROWS(InvalidArgument, "tokens has 21; the sequence has 50, of which 30 were committed before",
               test.cache->commit(running.slot, std::span(tokens).subspan(30, 21)));
  CHECK(test.found(tokens) == 16);
  test.commit(running, 30, 50);
  CHECK(test.found(tokens) == 48);
  CHECK_THROWS(InvalidArgument, "expected one that is open", test.cache->commit(3, {}));
  CHECK_THROWS(InvalidArgument, "expected one that is open", test.cache->commit(4, {}));
  test.close(running);
  CHECK_THROWS(InvalidArgument, "expected one that is open", test.cache->commit(running.slot, {}));
}

TEST(owners_do_not_find_each_other_s_tokens) {
  PrefixCache test({.slots = 6});
  const TokenList tokens = tokens_from(0, 100);
  const Sequence of_a = test.serve(tokens, "a");
  CHECK(test.found(tokens, "b") == 0 && test.found(tokens) == 0 && test.found(tokens, "a") == 96);
  test.close(of_a);
  test.end();
  CHECK(test.found(tokens, "b") == 0 && test.found(tokens) == 0 && test.found(tokens, "a") == 96);
  Sequence of_b = test.serve(tokens, "b");
  CHECK(of_b.cached == 0);
  const Sequence child = test.fork(of_b);  // is b's
  test.close(of_b);
  test.end();
  CHECK(test.found(tokens) == 0 && test.found(tokens, "b") == 96 && test.intact(child));
}

TEST(a_sequence_that_was_opened_without_tokens_may_commit_some) {
  PrefixCache test;
  const TokenList tokens = tokens_from(0, 50);
  Sequence running{test.cache->open({50}, {50}, {}), {}};
  test.step(running, tokens);
  test.commit(running, 0, 50);
  CHECK(test.found(tokens) == 48 && test.found(tokens, "a") == 0);
}

TEST(what_was_truncated_is_not_found) {
  PrefixCache test;
  const TokenList tokens = tokens_from(0, 200);
  Sequence running = test.serve(tokens);
  test.truncate(running, 100);
  CHECK(test.found(tokens) == 96);
  const TokenList other = tokens_from(900, 60);
  test.step(running, other);
  CHECK(test.found(tokens) == 96);
  test.commit(running, 100, 160);
  CHECK(test.found(tokens) == 96);
  CHECK(test.found(joined(first_of(tokens, 100), joined(other, {1}))) == 160);
  test.truncate(running, 0);
  CHECK(test.found(tokens) == 0);
  test.step(running, first_of(tokens, 40));
  test.commit(running, 0, 40);
  CHECK(test.found(tokens) == 32 && test.intact(running));
}

TEST(a_fork_s_tokens_are_found_as_long_as_it_runs_and_after) {
  PrefixCache test;
  const TokenList tokens = tokens_from(0, 100), more = tokens_from(500, 60);
  const Sequence parent = test.serve(tokens);
  Sequence child = test.fork(parent);
  test.step(child, more);
  test.commit(child, 100, 160);
  test.close(parent);
  CHECK(test.found(joined(joined(tokens, more), {1})) == 160);
  test.close(child);
  test.end();
  CHECK(test.found(joined(joined(tokens, more), {1})) == 160);
  CHECK(test.found(joined(tokens, {1})) == 96);
}

TEST(a_fork_of_what_is_not_committed_begins_where_its_parent_does) {
  PrefixCache test;
  const TokenList tokens = tokens_from(0, 100);
  Sequence parent = test.open(tokens);
  test.step(parent, tokens);
  test.commit(parent, 0, 41);
  Sequence child = test.fork(parent);
  CHECK_THROWS(InvalidArgument, "of which 41 were", test.cache->commit(child.slot, tokens));
  test.commit(child, 41, 100);
  CHECK(test.found(tokens) == 96);
  test.close(child);
  test.end();
  test.commit(parent, 41, 100);
  CHECK(test.intact(parent) && test.found(tokens) == 96);
}

TEST(where_copies_are_cheaper_and_memory_is_plenty_tokens_are_copied) {
  for (const Tokens tail : {Tokens{}, Tokens{10}}) {
    PrefixCache test({.slots = 5, .extents = 2, .tail = tail, .slow_maps = true});
    const TokenList tokens = tokens_from(0, 200);
    test.leave_pages(200, 4);
    Sequence first = test.serve(tokens);
    Sequence second = test.open(tokens);  // nobody knows what it costs
    CHECK(test.stats().aliased == 1 && test.stats().copied == 0);
    const Bytes saved = test.pool->stats().saved;
    Sequence third = test.open(tokens);
    CHECK(test.stats().aliased == 1 && test.stats().copied == 1 && test.pool->stats().saved == saved);
    CHECK(first.cached == 0 && second.cached == 192 && third.cached == 192);
    test.close(first);
    test.end();
    Sequence fourth = test.open(first_of(tokens, 150));  // of one that is closed
    CHECK(fourth.cached == 144 && test.stats().copied == 2);
    test.step(third, tokens_from(700, 30));
    test.step(fourth, tokens_from(800, 60));
    test.step(second, tokens_from(900, 20));
    CHECK(test.intact(second) && test.intact(third) && test.intact(fourth));
    Sequence again = test.open(joined(tokens, {1}));
    CHECK(again.cached == 192 && test.intact(again));
  }
}

TEST(a_copy_needs_pages_that_are_there) {
  PrefixCache test({.slots = 5, .slow_maps = true});
  const TokenList tokens = tokens_from(0, 200);
  const Sequence first = test.serve(tokens);
  const Sequence second = test.open(tokens), third = test.open(tokens);  // mapping costs as much as an alias
  CHECK(test.stats().aliased == 2 && test.stats().copied == 0);
  test.leave_pages(200, 1);
  const Bytes created = test.pool->stats().created;
  const Sequence fourth = test.open(tokens);
  CHECK(test.stats().copied == 1 && test.pool->stats().created == created);
  CHECK(fourth.cached == 192 && test.intact(fourth) && test.intact(third) && test.intact(second));
}

TEST(where_a_window_has_passed_what_lay_there_is_not_taken_for_the_sequence_s_tokens) {
  for (const bool copied : {false, true}) {
    PrefixCache test({.slots = 4, .window = {65}, .slow_maps = copied});
    const TokenList tokens = tokens_from(0, 256);
    test.leave_pages(256, 4);
    Sequence first = test.serve(tokens);
    if (copied) test.open(tokens);  // an alias, which is dear
    const Sequence second = test.open(tokens);
    CHECK(second.cached == 240 && test.stats().copied == (copied ? 1U : 0U));
    test.truncate(first, 0);
    test.close(first);
    test.close(second);
    test.end();
    CHECK(test.found(first_of(tokens, 177)) == 0);  // and it looks whether what it finds is right
  }
}

TEST(a_copy_that_would_take_most_of_the_memory_is_not_made) {
  PrefixCache test({.budget = 64_KiB * 17, .slow_maps = true});
  const TokenList tokens = tokens_from(0, 200);
  const Sequence first = test.serve(tokens);
  const Sequence second = test.open(tokens), third = test.open(tokens);
  CHECK(second.cached == 192 && third.cached == 192 && test.intact(first));
  CHECK(test.stats().aliased == 2 && test.stats().copied == 0);
}

TEST(records_that_straddle_pages_are_found_whole) {
  for (const bool slow : {false, true}) {
    PrefixCache test({.record = Bytes{1'000}, .slots = 5, .extents = 2, .leases = 2, .slow_maps = slow});
    const TokenList tokens = tokens_from(0, 300);
    if (slow) test.leave_pages(300, 4);
    Sequence first = test.serve(tokens);
    std::vector<Sequence> others;
    for (const std::size_t count : {70, 140, 300}) {
      others.push_back(test.open(first_of(tokens, count)));
      CHECK(others.back().cached == (count - 1) / 16 * 16);
      test.step(others.back(), tokens_from(static_cast<PrefixIndex::Token>(1'000 + count), 50));
    }
    for (const Sequence& each : others) CHECK(test.intact(each));
    CHECK(test.intact(first) && test.stats().copied == (slow ? 1U : 0U));
  }
}
