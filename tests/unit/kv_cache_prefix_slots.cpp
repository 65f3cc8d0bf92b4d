// Which slot a sequence that begins with the tokens of others gets, and what work on slots must be over.
#include "check.h"
#include "prefix_fixture.h"

using namespace vmm;

TEST(what_a_closed_sequence_left_is_adopted_where_it_lies) {
  for (const Tokens tail : {Tokens{}, Tokens{10}}) {
    PrefixCache test({.extents = 2, .tail = tail});
    const TokenList tokens = tokens_from(0, 192);
    const Sequence first = test.serve(tokens);
    const Bytes kept = test.pool->stats().kept;
    test.close(first);
    test.end();
    CHECK(test.stats().cached_slots == 1 && test.pool->stats().kept == Bytes{});
    CHECK(test.cache->open_slots() == 0 && test.cache->held() == Bytes{});
    test.faults->fail_at(0, 0, Fault::error);
    Sequence second = test.open(joined(tokens, {1}));
    CHECK(second.slot == first.slot && second.cached == 192 && test.faults->calls() == 0);
    CHECK(test.stats().adopted == 1 && test.stats().cached_slots == 0);
    CHECK(test.pool->stats().kept == kept && test.pool->stats().saved == Bytes{});
    CHECK(test.cache->slots().kept(second.slot) == Tokens{192});
    test.step(second, tokens_from(500, 100));
    CHECK(test.intact(second));
    test.close(second);
    test.end();
    CHECK(test.found(joined(tokens, {1})) == 192);  // what it has not committed is not found
  }
}

TEST(a_closed_sequence_with_more_tokens_is_not_adopted_while_there_are_other_slots) {
  PrefixCache test;
  const TokenList tokens = tokens_from(0, 256);
  test.leave(tokens);
  Sequence shorter = test.open(first_of(tokens, 129));
  CHECK(shorter.cached == 128 && test.stats().adopted == 0 && test.stats().aliased == 1);
  CHECK(test.stats().cached_slots == 1);
  test.step(shorter, tokens_from(900, 100));
  const Sequence whole = test.open(joined(tokens, {1}));
  CHECK(whole.cached == 256 && test.stats().adopted == 1);
  CHECK(test.intact(shorter) && test.intact(whole));
}

TEST(the_only_slot_is_adopted_and_what_follows_is_forgotten) {
  PrefixCache test({.slots = 2});
  const TokenList tokens = tokens_from(0, 256);
  Sequence parent = test.open(tokens);
  test.step(parent, tokens);
  const Sequence child = test.fork(parent);  // shares all four pages
  test.commit(child, 0, 256);
  test.close(child);
  test.end();
  Sequence adopted = test.open(first_of(tokens, 129));
  CHECK(adopted.cached == 128 && adopted.slot == child.slot && test.stats().adopted == 1);
  test.step(adopted, tokens_from(5'000, 200));
  CHECK(test.intact(parent) && test.intact(adopted));
  test.close(parent);
  test.end();
  CHECK(test.found(joined(tokens, {1})) == 128 && test.intact(adopted));
}

TEST(a_closed_slot_whose_next_page_is_another_s_too_is_not_written_to) {
  for (const Tokens tail : {Tokens{}, Tokens{70}}) {
    PrefixCache test({.extents = 2, .tail = tail});
    const TokenList tokens = tokens_from(0, 256);
    Sequence parent = test.open(tokens);
    test.step(parent, tokens);
    test.commit(parent, 0, 100);
    Sequence child = test.fork(parent);  // shares all four pages; parent's 96 tokens end within the second
    test.close(parent);
    test.end();
    Sequence next = test.open(first_of(tokens, 100));
    CHECK(next.cached == 96);
    test.step(next, tokens_from(700, 100));
    CHECK(test.intact(child) && test.intact(next));
    test.close(child);
    test.end();
    CHECK(test.intact(next));
  }
}

TEST(a_closed_slot_that_gave_its_shared_pages_up_in_this_epoch_is_adopted_all_the_same) {
  PrefixCache test({.tail = {10}});
  const TokenList tokens = tokens_from(0, 256);
  Sequence parent = test.open(tokens);
  test.step(parent, tokens);
  test.commit(parent, 0, 128);
  const Sequence child = test.fork(parent);
  test.close(parent);  // page 2 waits for the epoch, which is open
  Sequence next = test.open(first_of(tokens, 129));
  CHECK(next.cached == 128);
  test.step(next, tokens_from(700, 100));
  CHECK(test.intact(child) && test.intact(next));
}

TEST(of_two_slots_with_as_many_tokens_the_one_that_nobody_is_in_is_taken) {
  PrefixCache test;
  const TokenList tokens = tokens_from(0, 128);
  const Sequence running = test.serve(joined(tokens, {1}));
  const Sequence other = test.open(joined(tokens, {2}));
  test.close(other);
  test.end();
  const Sequence next = test.open(joined(tokens, {3}));
  CHECK(next.slot == other.slot && next.cached == 128 && test.stats().adopted == 1);
  CHECK(test.intact(running));
}

TEST(work_of_another_stream_that_is_not_over_is_not_attached_to) {
  PrefixCache test({.slots = 6});
  const StreamHandle other = test.pool->streams().create();
  const TokenList tokens = tokens_from(0, 128);
  const Sequence running = test.serve(tokens, "", other);
  const Sequence too_early = test.open(joined(tokens, {1}));
  CHECK(too_early.cached == 0);
  const Sequence in_order = test.open(joined(tokens, {1}), "", other);
  CHECK(in_order.cached == 128);
  test.close(in_order, other);  // what it read and wrote is not over either
  CHECK(test.open(joined(tokens, {1})).cached == 0);
  test.faults->hold_events(true);
  test.cache->end(other);
  CHECK(test.open(joined(tokens, {1})).cached == 0);
  test.faults->hold_events(false);
  test.end(other);
  CHECK(test.open(joined(tokens, {1})).cached == 128 && test.intact(running));
  test.pool->streams().destroy(other);
}

TEST(a_closed_slot_of_another_stream_is_attached_to_when_its_work_is_over) {
  PrefixCache test;
  const StreamHandle other = test.pool->streams().create();
  const TokenList tokens = tokens_from(0, 128);
  test.close(test.serve(tokens, "", other), other);
  Sequence too_early = test.open(joined(tokens, {1}));
  CHECK(too_early.cached == 0 && test.stats().cached_slots == 1);
  test.close(too_early);
  test.end(other);
  const Sequence next = test.open(joined(tokens, {1}));
  CHECK(next.cached == 128 && test.stats().adopted == 1);
  test.pool->streams().destroy(other);
}

TEST(a_slot_that_is_still_read_is_waited_for) {
  PrefixCache test({.slots = 2});
  const TokenList tokens = tokens_from(0, 128);
  Sequence first = test.serve(tokens);
  Sequence second = test.open(tokens_from(900, 30));
  test.step(second, tokens_from(900, 30));
  test.close(second);  // in an epoch that is open
  Sequence third = test.open(joined(tokens, {1}));
  CHECK(third.cached == 128 && third.slot == second.slot);
  test.step(third, tokens_from(300, 70));
  CHECK(test.intact(first) && test.intact(third));
}

TEST(a_slot_that_another_stream_s_open_epoch_reads_is_not_waited_for) {
  PrefixCache test({.slots = 2});
  const StreamHandle other = test.pool->streams().create();
  const TokenList tokens = tokens_from(0, 128);
  const Sequence first = test.serve(tokens);
  Sequence second = test.open(tokens_from(900, 30), "", other);
  test.step(second, tokens_from(900, 30), other);
  test.close(second, other);
  const Sequence third = test.open(joined(tokens, {1}));
  CHECK(third.cached == 0 && third.slot == second.slot && test.intact(first));
  test.end(other);
  test.pool->streams().destroy(other);
}

TEST(without_a_slot_nothing_is_opened) {
  PrefixCache test({.slots = 2});
  const TokenList tokens = tokens_from(0, 128);
  const Sequence first = test.serve(tokens), second = test.open(tokens_from(900, 30));
  CHECK_THROWS(InvalidArgument, "all of them are open", test.cache->open_prompt({tokens, ""}, {}, {}));
  CHECK_THROWS(InvalidArgument, "max_tokens", test.cache->open_prompt({TokenList(1'025, 0), ""}, {}, {}));
  CHECK(test.cache->open_slots() == 2 && test.intact(first) && second.cached == 0);
}

TEST(a_fork_takes_the_slots_of_closed_sequences_the_one_used_longest_ago_first) {
  PrefixCache test;
  const TokenList a = tokens_from(0, 40), b = tokens_from(500, 40), c = tokens_from(900, 40);
  const Sequence first = test.serve(a), second = test.serve(b), third = test.serve(c);
  test.close(second);
  test.close(first);
  test.end();
  Sequence child = test.fork(third);  // the free slot
  Sequence grandchild = test.fork(third);
  CHECK(grandchild.slot == second.slot && test.stats().cached_slots == 1);
  test.step(child, tokens_from(100, 20));
  test.step(grandchild, tokens_from(200, 20));
  CHECK(test.intact(third) && test.intact(child) && test.intact(grandchild));
  CHECK(test.found(joined(a, {1})) == 32 && test.found(joined(c, {1})) == 32);
}

TEST(a_sequence_of_other_tokens_takes_the_closed_slot_that_was_used_longest_ago) {
  PrefixCache test({.slots = 3});
  std::vector<TokenList> texts;
  for (int i = 0; i < 3; ++i) test.leave(texts.emplace_back(tokens_from(1'000 * i, 60)));
  CHECK(test.stats().cached_slots == 3);
  CHECK(test.found(joined(texts[0], {1})) == 48);  // now text 1 was used longest ago
  const Sequence other{test.cache->open({10}, {10}, {}), {}};
  CHECK(test.stats().cached_slots == 2);
  test.close(other);
  CHECK(test.found(texts[0]) == 48 && test.found(texts[2]) == 48);
}

TEST(a_sequence_takes_a_closed_slot_that_is_read_where_there_is_no_other) {
  PrefixCache test({.slots = 1});
  const StreamHandle other = test.pool->streams().create();
  test.close(test.serve(tokens_from(0, 60), "", other), other);
  Sequence next{test.cache->open({10}, {10}, {}), {}};
  CHECK(test.stats().cached_slots == 0);
  CHECK_THROWS(Error, "open still", test.step(next, tokens_from(500, 100)));
  test.end(other);
  test.step(next, tokens_from(500, 100));
  CHECK(test.intact(next));
  test.pool->streams().destroy(other);
}

TEST(a_sequence_is_not_cut_back_while_another_stream_copies_its_tokens) {
  for (const bool slow : {false, true}) {
    PrefixCache test({.record = Bytes{1'000}, .slots = 5, .slow_maps = slow});
    const StreamHandle other = test.pool->streams().create();
    const TokenList tokens = tokens_from(0, 250);
    Sequence first = test.serve(tokens);
    test.end();
    test.close(test.open(joined(tokens, {1})));
    test.end();
    Sequence third = test.open(tokens_from(7'000, 20), "", other);
    test.step(third, tokens_from(7'000, 20), other);
    const auto opened = test.cache->open_prompt({first_of(tokens, 230), ""}, {}, other);
    CHECK(opened.cached == Tokens{224});
    Sequence second{opened.slot, first_of(tokens, 224)};
    CHECK_THROWS(Error, "is copied on another stream", test.cache->truncate(first.slot, {210}, {}));
    test.finish(other);
    test.end(other);
    test.cache->truncate(first.slot, {210}, {});
    first.tokens.resize(210);
    test.step(first, tokens_from(900, 20));
    CHECK(test.intact(first) && test.intact(second));
    for (const Sequence* each : {&first, &second, &third}) test.close(*each);
    test.end();
    test.pool->streams().destroy(other);
  }
}
