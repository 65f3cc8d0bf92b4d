// Several slots that share leases.
#include "base/error.h"
#include "check.h"
#include "slots_fixture.h"

using namespace vmm;

TEST(slots_that_do_not_fit_are_refused) {
  TestPool test(4_MiB);
  auto lease = test.reserve(1_MiB, 4);
  auto make = [&](SlotPart part, std::uint32_t count, const SlotsOptions& options = {}) {
    Slots::make(test.pager, {std::move(part)}, count, options);
  };
  CHECK_THROWS(InvalidArgument, "first_extent, extents", make({lease, 0, 2, record}, 3));
  CHECK_THROWS(InvalidArgument, "first_extent, extents", make({lease, 1, 2, record}, 2));
  CHECK_THROWS(InvalidArgument, "first_extent, extents", make({lease, 0, 0, record}, 1));
  CHECK_THROWS(InvalidArgument, "record_bytes", make({lease, 0, 1, {}}, 1));
  CHECK_THROWS(InvalidArgument, "count", make({lease, 0, 1, record}, 0));
  CHECK_THROWS(InvalidArgument, "tail", make({lease, 0, 1, record}, 1, {.tail = {349}}));
  CHECK_THROWS(InvalidArgument, "room for 348",
               make({lease, 0, 1, record}, 1, {.tail = {1}, .max_tokens = {349}}));
  CHECK_THROWS(InvalidArgument, "parts", Slots::make(test.pager, {}, 1, {}));
  TestPool other(4_MiB);
  CHECK_THROWS(InvalidArgument, "another pool", make({other.reserve(1_MiB), 0, 1, record}, 1));
  make({lease, 0, 2, record}, 2);
}

TEST(each_slot_has_its_own_extents) {
  TestSlots test(16_MiB);
  CHECK(test.slots->max_tokens() == Tokens{349});  // the widest record decides
  test.advance({{2, {22}}, {0, {300}}});
  CHECK((test.mapped(0) == Mapped{14, 14, 2}));
  CHECK((test.mapped(1) == Mapped{0, 0, 0}));
  CHECK((test.mapped(2) == Mapped{2, 2, 1}));
  CHECK(test.slots->limits()[2] == Tokens{43} && test.slots->limits()[1] == Tokens{0});
  CHECK(test.pool->stats().kept == test.pool->stats().mapped);
  CHECK_THROWS(std::out_of_range, "", test.advance({{3, {1}}}));
  CHECK_THROWS(InvalidArgument, "max_tokens is 349", test.advance({{1, {1}}, {2, {350}}}));
  CHECK((test.mapped(1) == Mapped{0, 0, 0}));
  test.pool->check();
}

TEST(a_limit_of_its_own_is_kept) {
  TestSlots test(16_MiB, {.tail = {30}, .max_tokens = {100}});
  CHECK(test.slots->max_tokens() == Tokens{100});
  test.advance({{0, {100}}});
  CHECK_THROWS(InvalidArgument, "max_tokens is 100", test.advance({{0, {101}}}));
  CHECK_THROWS(InvalidArgument, "max_tokens is 100", test.slots->announce(0, {101}));
}

TEST(all_slots_or_none) {
  TestSlots test(1_MiB);  // 16 pages
  test.advance({{1, {1}}});
  const auto before = test.pool->stats().kept;
  CHECK_THROWS(OutOfPages, "budget", test.advance({{0, {40}}, {2, {150}}}));
  CHECK(test.pool->stats().kept == before);
  CHECK(test.slots->limits()[0] == Tokens{0} && test.slots->limits()[2] == Tokens{0});
  test.pool->check();
  test.advance({{0, {40}}});
  CHECK((test.mapped(0) == Mapped{2, 2, 1}));
  test.pool->check();
}

TEST(a_failure_in_the_last_part_keeps_nothing_of_the_first) {
  for (std::int64_t n = 1; n < 100; ++n) {
    TestSlots test(16_MiB);
    test.advance({{1, {10}}});
    const auto before = test.pool->stats().kept;
    test.faults->fail_at(n, 1, Fault::error);
    bool failed = false;
    try {
      test.advance({{1, {100}}, {0, {50}}});
    } catch (const DriverError&) {
      failed = true;
    }
    test.faults->fail_at(0, 0, Fault::error);
    CHECK(failed == (test.pool->stats().kept == before));
    CHECK(failed == (test.slots->limits()[0] == Tokens{0}));
    test.pool->check();
    test.advance({{1, {100}}, {0, {50}}});
    CHECK((test.mapped(1) == Mapped{5, 5, 1}));
    if (failed) continue;
    CHECK(n > 5);
    return;
  }
  CHECK(!"it fails for ever");
}

TEST(a_failure_holds_nothing_back) {
  TestSlots test(1_MiB);
  test.pool->epochs().step({});
  CHECK_THROWS(OutOfPages, "budget", test.advance({{0, {40}}, {2, {4}}, {1, {250}}}));
  CHECK_THROWS(OutOfPages, "budget", test.advance({{0, {174}}}));  // the narrow part fails: 16 pages are wide
  advance_slots(*test.slots, std::vector<SlotLength>{{2, {150}}});  // takes all there is, in the open epoch
  CHECK((test.mapped(2) == Mapped{7, 7, 1}));
  test.pool->epochs().end({});
}

TEST(the_tail_is_mapped_and_not_part_of_the_limit) {
  TestSlots test(16_MiB, {.tail = {30}, .look_ahead = false});
  test.advance({{0, {1}}});
  CHECK((test.mapped(0) == Mapped{2, 2, 1}));    // 31 tokens
  CHECK(test.slots->limits()[0] == Tokens{13});  // 43 in two pages
  test.advance({{0, {13}}});
  CHECK((test.mapped(0) == Mapped{2, 2, 1}));
  test.advance({{0, {14}}});
  CHECK((test.mapped(0) == Mapped{3, 3, 1}));
  truncate(*test.slots, 0, {1});
  CHECK(test.slots->limits()[0] == Tokens{13});
  CHECK(test.pool->stats().kept == 64_KiB * 5);
  truncate(*test.slots, 0, {});
  CHECK(test.slots->limits()[0] == Tokens{0});
  CHECK(test.pool->stats().kept == Bytes{});
  test.slots->announce(0, {});
  CHECK(test.slots->covered()[0] == Tokens{0});
}

TEST(a_truncation_ends_the_need_of_one_slot_only) {
  TestSlots test(16_MiB);
  test.advance({{0, {100}}, {1, {100}}, {2, {100}}});
  truncate(*test.slots, 1, {22});
  CHECK(test.pool->stats().kept == 64_KiB * 27);  // 11 + 5 + 11
  CHECK(test.slots->limits()[1] == Tokens{43} && test.slots->limits()[0] == Tokens{109});
  test.pool->trim(16_MiB);
  CHECK((test.mapped(0) == Mapped{5, 5, 1}));
  CHECK((test.mapped(1) == Mapped{2, 2, 1}));
  CHECK((test.mapped(2) == Mapped{5, 5, 1}));
}

TEST(what_no_window_reaches_is_given_up) {
  TestPool test(16_MiB);
  auto wide = test.reserve(1_MiB, 2), narrow = test.reserve(1_MiB, 2);
  const auto slots = Slots::make(test.pager, {{wide, 0, 1, record, {50}}, {narrow, 0, 1, {2'048}}}, 2, {});
  auto mapped = [&](std::uint32_t page) {
    return wide->reservation().table[{16 + page}].kept();  // of slot 1
  };
  auto advance = [&](std::uint64_t length, std::uint64_t computed) {
    advance_slots(*slots, std::vector<SlotLength>{{1, {length}, {computed}}});
  };
  advance(200, 0);
  CHECK(mapped(0) && mapped(9));
  CHECK(slots->held(1) == 64_KiB * (10 + 7));
  CHECK(slots->live({200}) == Bytes{50 * 3'000 + 200 * 2'048});
  // The next token is number 200, and needs 151 and those after it. Page 6 ends in token 152.
  advance(220, 200);
  CHECK(!mapped(0) && !mapped(5) && mapped(6) && mapped(10));
  CHECK(slots->held(1) == 64_KiB * (11 - 6 + 7));
  CHECK(narrow->reservation().table[{16}].kept());
  test.pool->trim(16_MiB);
  CHECK(wide->reservation().table[{16}].state == VirtualState::unmapped);
  // Back to where the window is still whole: from token 132, where page 6 begins, on.
  CHECK_THROWS(InvalidArgument, "window", truncate(*slots, 1, {180}));
  CHECK(slots->kept(1) == Tokens{220});
  truncate(*slots, 1, {181});
  advance(240, 181);
  CHECK(!mapped(5) && mapped(6) && mapped(10));
  truncate(*slots, 1, {});
  CHECK(test.pool->stats().kept == Bytes{});
  advance(200, 0);
  CHECK(mapped(0));
  advance(220, 200);
  CHECK(!mapped(5) && mapped(6));
  test.pool->check();
}

TEST(the_cost_of_a_length_counts_what_others_could_take) {
  TestSlots test(1_MiB);
  test.slots->announce(0, {30});
  test.settle();
  CHECK(test.pool->reclaiming().obtainable({}) == 1 << 20);
  CHECK(test.slots->missing(0, {30}) == Bytes{});
  CHECK(test.slots->cost(0, {30}, {}) == 5 * 65'536);
  test.advance({{0, {30}}});
  CHECK(test.pool->reclaiming().obtainable({}) == 11 * 65'536);
  CHECK(test.slots->cost(0, {30}, {}) == 0);
  test.budget->set_limit(256_KiB);
  CHECK(test.pool->reclaiming().obtainable({}) == -65'536);
}

TEST(a_lowered_budget_is_met_before_anything_is_taken_in_vain) {
  TestSlots test(1_MiB);
  test.advance({{0, {100}}, {1, {22}}});  // 5 + 5 + 1 pages, and 2 + 2 + 1
  truncate(*test.slots, 1, {});
  test.budget->set_limit(64_KiB * 12);
  CHECK_THROWS(OutOfPages, "budget", test.advance({{2, {1}}}));
  CHECK((test.mapped(1) == Mapped{2, 2, 1}));  // 5 pages: 4 are owed, and 3 were asked for
  test.budget->set_limit(64_KiB * 14);
  test.advance({{2, {1}}});
  test.pool->check();
}

TEST(what_another_stream_s_open_epoch_holds_cannot_be_obtained) {
  TestSlots test(1_MiB);
  const StreamHandle other = test.pool->streams().create();
  test.advance({{0, {30}}});
  test.pool->epochs().step(other);
  truncate(*test.slots, 0, {});
  CHECK(test.pool->reclaiming().obtainable({}) == 11 * 65'536);
  CHECK(test.pool->reclaiming().obtainable(other) == 16 * 65'536);
  CHECK(test.slots->cost(0, {30}, {}) == 0);  // its own, wherever that stream is
  test.pool->epochs().end(other);
  CHECK(test.pool->reclaiming().obtainable({}) == 16 * 65'536);
  test.pool->streams().destroy(other);
}
