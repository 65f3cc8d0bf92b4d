// What is announced of blocks: mapped by the pager, starved, refused, or dropped before it comes.
#include "base/error.h"
#include "blocks_fixture.h"
#include "check.h"

using namespace vmm;

TEST(the_pager_maps_what_is_announced) {
  RangeTest test(8_MiB, 2_MiB);
  auto blocks = test.blocks({Bytes{}, 1_MiB}, 32_KiB, 32);
  blocks->announce(Ids{3, 3, 4, 31});
  CHECK(test.mapped() == Bytes{});
  CHECK(blocks->announced() == 3);
  test.settle();
  CHECK(test.mapped() == page * 6);
  CHECK(blocks->ready(Ids{3, 31, 0}) == flags({1, 1, 0}));
  CHECK(test.kept() == Bytes{});
  test.pool->trim(8_MiB, false, Need::announced);
  CHECK(test.mapped() == page * 6);  // it is needed
  const auto stalls = test.pool->counters().stalls.get();
  blocks->keep(Ids{3, 4, 31});
  CHECK(blocks->announced() == 0 && blocks->kept() == 3);
  CHECK(test.pool->counters().stalls.get() == stalls);
  CHECK(test.pool->counters().pages_mapped_ahead.get() == 6);
  blocks->announce(Ids{3});  // no news
  CHECK(blocks->announced() == 0);
  blocks->drop(Ids{3, 4, 31}, {});
  test.pool->trim(8_MiB, false, Need::announced);
  CHECK(test.mapped() == Bytes{});
}

TEST(a_page_of_a_dropped_block_is_needed_as_others_need_it) {
  RangeTest test(8_MiB, 2_MiB);
  auto blocks = test.blocks({Bytes{}}, 32_KiB, 64);
  blocks->announce(Ids{1});
  blocks->keep(Ids{0});
  test.settle();
  blocks->drop(Ids{0}, {});
  CHECK(test.kept() == Bytes{});
  test.pool->trim(8_MiB, false, Need::announced);
  CHECK(test.mapped() == page);
  blocks->drop(Ids{1}, {});
  test.pool->trim(8_MiB, false, Need::announced);
  CHECK(test.mapped() == Bytes{});
}

TEST(what_is_dropped_before_the_pager_comes_is_not_mapped) {
  RangeTest test(8_MiB, 2_MiB);
  auto blocks = test.blocks({Bytes{}}, 64_KiB, 32);
  blocks->announce(Ids{1, 2});
  blocks->drop(Ids{1}, {});
  test.settle();
  CHECK(test.mapped() == page);
  CHECK(blocks->ready(Ids{1, 2}) == flags({0, 1}));
}

TEST(what_starved_is_mapped_when_something_is_dropped) {
  RangeTest test(256_KiB, 2_MiB);
  auto blocks = test.blocks({Bytes{}}, 64_KiB, 32);
  blocks->keep(Ids{0, 1, 2});
  blocks->announce(Ids{10, 11, 12});
  test.settle();
  CHECK(blocks->ready(Ids{10, 11, 12}) == flags({1, 0, 0}));
  blocks->drop(Ids{0}, {});
  test.settle();
  CHECK(blocks->ready(Ids{10, 11, 12}) == flags({1, 1, 0}));
  blocks->drop(Ids{11, 1}, {}, true);
  test.settle();
  CHECK(blocks->ready(Ids{10, 11, 12}) == flags({1, 0, 1}));
  test.pool->check();
}

TEST(what_the_driver_refused_the_pager_is_not_lost) {
  RangeTest test(8_MiB, 2_MiB);
  auto blocks = test.blocks({Bytes{}}, 64_KiB, 32);
  blocks->announce(Ids{0, 1, 2});
  test.faults->fail_at(1, 100, Fault::error);
  test.settle();
  test.faults->fail_at(0, 0, Fault::error);
  CHECK(test.mapped() == Bytes{});
  test.settle();
  CHECK(test.mapped() == page * 3);
}

TEST(an_announced_page_that_is_still_being_unmapped_is_mapped_later) {
  RangeTest test(512_KiB, 2_MiB);
  auto blocks = test.blocks({Bytes{}}, 64_KiB, 32);
  blocks->keep(Ids{0});
  test.faults->hold_events(true);
  test.pool->epochs().mark({});
  blocks->drop(Ids{0}, test.fence(), true);
  blocks->announce(Ids{0});
  test.settle();
  CHECK(blocks->ready(Ids{0}) == flags({0}));
  test.faults->hold_events(false);
  finish_work();
  for (int i = 0; i < 3; ++i) test.settle();
  CHECK(blocks->ready(Ids{0}) == flags({1}));
}
