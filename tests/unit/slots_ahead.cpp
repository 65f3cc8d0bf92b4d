// What slots will need: announced, mapped by the pager, and how late that is.
#include "check.h"
#include "slots_fixture.h"

using namespace vmm;

TEST(what_is_announced_is_mapped_for_that_slot) {
  TestSlots test(16_MiB);
  test.slots->announce(1, {30});
  CHECK(test.slots->covered()[1] == Tokens{43});
  test.slots->announce(std::vector<SlotLength>{{1, {43}}, {2, {1}}});
  CHECK(test.slots->covered()[1] == Tokens{43});
  CHECK(test.slots->covered()[2] == Tokens{21});
  CHECK((test.mapped(1) == Mapped{0, 0, 0}));
  test.settle();
  CHECK((test.mapped(0) == Mapped{0, 0, 0}));
  CHECK((test.mapped(1) == Mapped{2, 2, 1}));
  CHECK((test.mapped(2) == Mapped{1, 1, 1}));
  CHECK(test.pool->stats().kept == Bytes{});
  test.advance({{1, {43}}});
  CHECK(test.pool->counters().stalls.get() == 0);
  test.advance({{1, {44}}});
  CHECK(test.pool->counters().stalls.get() == 1);
}

TEST(where_memory_is_short_one_slot_gets_all_its_parts_before_the_next) {
  TestSlots test(640_KiB);  // ten pages; each slot needs seven
  test.slots->announce(std::array{SlotLength{0, {44}}, SlotLength{1, {44}}, SlotLength{2, {44}}});
  test.settle();
  CHECK((test.mapped(0) == Mapped{3, 3, 1}));
  CHECK((test.mapped(2) == Mapped{0, 0, 0}));
  test.advance({{0, {44}}});
  CHECK(test.pool->counters().pages_mapped_waiting.get() == 0);
  test.pool->check();
}

TEST(what_was_truncated_can_be_announced_again) {
  TestSlots test(16_MiB);
  test.advance({{0, {100}}});
  truncate(*test.slots, 0, {1});
  test.pool->trim(16_MiB);
  test.slots->announce(0, {100});
  test.settle();
  CHECK((test.mapped(0) == Mapped{5, 5, 1}));
}

TEST(the_time_until_what_was_announced_is_mapped) {
  TestSlots test(16_MiB);
  CHECK(test.slots->take_delay() == Nanoseconds{0});
  test.slots->announce(0, {10});
  test.clock->advance(Nanoseconds{500});
  test.slots->announce(1, {10});
  test.clock->advance(Nanoseconds{700});
  test.settle();
  CHECK(test.slots->take_delay() == Nanoseconds{1'200});
  CHECK(test.slots->take_delay() == Nanoseconds{0});
}

TEST(what_takes_several_batches_is_as_late_as_its_end) {
  TestSlots test(16_MiB);
  test.slots->announce(0, {349});  // 34 pages, and 32 are a batch
  test.clock->advance(Nanoseconds{500});
  CHECK(test.pager->poll(test.clock->now()).now);
  CHECK(test.slots->take_delay() == Nanoseconds{0});
  test.clock->advance(Nanoseconds{700});
  CHECK(!test.pager->poll(test.clock->now()).now);
  CHECK(test.slots->take_delay() == Nanoseconds{1'200});
}

TEST(who_is_served_while_others_wait_was_not_late) {
  TestSlots test(16_MiB);
  test.slots->announce(1, {10});
  test.slots->announce(0, {349});
  test.clock->advance(Nanoseconds{100});
  test.pager->poll(test.clock->now());
  CHECK(test.slots->take_delay() == Nanoseconds{100});  // slot 1
  test.clock->advance(Nanoseconds{300});
  test.slots->announce(2, {10});
  test.clock->advance(Nanoseconds{100});
  test.settle();
  CHECK(test.slots->take_delay() == Nanoseconds{500});  // slot 0
  CHECK((test.mapped(2) == Mapped{1, 1, 1}));
}
