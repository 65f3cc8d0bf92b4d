// Blocks without memory that show one page for a while.
#include <cstring>

#include "base/error.h"
#include "blocks_fixture.h"
#include "check.h"

using namespace vmm;

TEST(while_a_scratch_is_open_all_of_its_blocks_show_one_page) {
  RangeTest test(512_KiB, 8_MiB);
  auto blocks = test.blocks({Bytes{}, 4_MiB}, 48_KiB, 80);  // 120 pages, of which 8 can be had
  blocks->keep(Ids{0});
  auto byte = [&](Bytes at) -> unsigned char& { return *bytes_at(*test.range->lease(), at); };
  byte(Bytes{}) = 1;
  Ids all;
  for (std::int32_t id = 0; id < 80; ++id) all.push_back(id);
  auto scratch = blocks->scratch(all);
  CHECK(test.pool->stats().created <= page * 3);
  byte(1_MiB) = 7;
  CHECK(byte(2_MiB) == 7 && byte(5_MiB) == 7);
  CHECK(byte(Bytes{}) == 1);
  CHECK(blocks->ready(Ids{0, 1, 2}) == flags({1, 0, 0}));  // 1 is on page 0, too, but not only
  CHECK_THROWS(InvalidArgument, "end the scratch first", blocks->keep(Ids{0, 7}));
  CHECK_THROWS(InvalidArgument, "already", blocks->scratch(Ids{7}));
  blocks->announce(Ids{7});
  blocks->drop(Ids{0}, {});
  test.settle();
  test.pool->trim(8_MiB, false, Need::announced);
  CHECK(byte(Bytes{}) == 1);  // its page stays as long as the scratch
  test.pool->check();
  scratch->end();
  scratch->end();
  test.settle();
  CHECK(blocks->ready(Ids{7, 8, 20}) == flags({1, 0, 0}));
  blocks->keep(Ids{20});
  CHECK(byte(48_KiB * 20) == 0);
  scratch.reset();
  blocks.reset();
  test.range.reset();
  test.settle();
  test.pool->trim(8_MiB);
  CHECK(test.pool->stats().created == Bytes{});
  test.pool->check();
}

TEST(a_scratch_that_fails_leaves_nothing) {
  for (std::int64_t n = 1;; ++n) {
    RangeTest test(512_KiB, 8_MiB);
    auto blocks = test.blocks({Bytes{}}, 48_KiB, 80);
    blocks->keep(Ids{3});
    const Bytes kept = test.kept();
    test.faults->fail_at(n, 1, Fault::error);
    bool failed = false;
    try {
      auto scratch = blocks->scratch(Ids{0, 1, 2, 3, 40});
      scratch->end();
    } catch (const DriverError&) {
      failed = true;
    }
    test.faults->fail_at(0, 0, Fault::error);
    test.pool->check();
    auto again = blocks->scratch(Ids{0, 1, 2, 3, 40});
    *bytes_at(*test.range->lease(), 0_KiB) = 5;
    again.reset();
    CHECK(test.kept() == kept);
    blocks->keep(Ids{0, 40});
    if (failed) continue;
    CHECK(n > 2);
    return;
  }
}

TEST(a_scratch_waits_for_the_work_on_it) {
  RangeTest test(512_KiB, 8_MiB);
  auto blocks = test.blocks({Bytes{}}, 48_KiB, 80);
  auto scratch = blocks->scratch(Ids{0, 1});
  test.pool->epochs().step({});
  CHECK_THROWS(Error, "epoch is open", scratch->end());
  *bytes_at(*test.range->lease(), 0_KiB) = 5;  // still there
  test.faults->delay_events(3);
  test.pool->epochs().end({});
  finish_work();
  scratch->end();
  blocks->keep(Ids{0});
}

TEST(ranges_and_pools_close_with_a_scratch_open) {
  RangeTest test(512_KiB, 8_MiB);
  auto blocks = test.blocks({Bytes{}}, 48_KiB, 80);
  auto first = blocks->scratch(Ids{0, 1}), second = blocks->scratch(Ids{20});
  test.range->end();
  CHECK_THROWS(Closed, "range", blocks->scratch(Ids{3}));
  first->end();
  test.range = test.make(1_MiB);
  blocks = test.blocks({Bytes{}}, 48_KiB, 4);
  first = blocks->scratch(Ids{0, 1});
  test.pool->close();
  *bytes_at(*test.range->lease(), 0_KiB) = 5;
  first.reset();
  CHECK(test.pool->stats().created == Bytes{});
  CHECK_THROWS(Closed, "", blocks->scratch(Ids{0}));
  test.pool->check();
}
