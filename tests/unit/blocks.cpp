// Blocks of a range: neighbours and stretches that share pages, and what is dropped.
#include <random>
#include <set>

#include "base/error.h"
#include "blocks_fixture.h"
#include "check.h"

using namespace vmm;

TEST(a_page_is_kept_as_long_as_a_block_on_it) {
  RangeTest test(8_MiB, 2_MiB);
  auto blocks = test.blocks({Bytes{}}, 24_KiB, 40);  // 2.67 blocks a page
  blocks->keep(Ids{0, 1, 2});                        // block 2 is on pages 0 and 1
  CHECK(test.kept() == page * 2);
  blocks->drop(Ids{2}, {});
  CHECK(test.kept() == page);
  blocks->drop(Ids{0}, {});
  CHECK(test.kept() == page);
  blocks->drop(Ids{1}, {});
  CHECK(test.kept() == Bytes{});
  CHECK(test.mapped() == page * 2);  // as long as nobody needs the memory
  CHECK(blocks->ready(Ids{0, 1, 2, 3, 39}) == flags({1, 1, 1, 1, 0}));
  test.pool->check();
}

TEST(stretches_may_share_a_page_too) {
  RangeTest test(8_MiB, 2_MiB);
  // Of the same place within a page, and of another: all meet on page 1.
  auto blocks = test.blocks({Bytes{}, 80_KiB, 112_KiB, 512_KiB}, 16_KiB, 5);
  blocks->keep(Ids{4});  // KiB 64-80, 144-160, 176-192 and 576-592
  CHECK(test.kept() == page * 3);
  blocks->keep(Ids{0});  // KiB 0-16, 80-96, 112-128 and 512-528
  CHECK(test.kept() == page * 5);
  blocks->drop(Ids{4}, {});
  CHECK(test.kept() == page * 3);
  CHECK(test.mapped_from(0) == 3);
  blocks->drop(Ids{0}, {});
  CHECK(test.kept() == Bytes{});
}

TEST(several_blocks_of_one_range_share_its_pages) {
  RangeTest test(8_MiB, 2_MiB);
  auto first = test.blocks({Bytes{}}, 32_KiB, 3);
  auto second = test.blocks({96_KiB}, 16_KiB, 8);
  first->keep(Ids{2});
  second->keep(Ids{0});
  CHECK(test.kept() == page);
  first->drop(Ids{2}, {});
  CHECK(test.kept() == page);
  second.reset();  // drops what it keeps
  CHECK(test.kept() == Bytes{});
}

TEST(random_calls_need_the_pages_that_a_naive_count_says) {
  std::mt19937 random(5);
  auto below = [&](unsigned n) { return random() % n; };
  for (int round = 0; round < 20; ++round) {
    RangeTest test(32_MiB, 8_MiB);
    const Bytes stride = 1_KiB * (1 + below(150));
    std::vector<Bytes> starts;
    for (unsigned i = 1 + below(5); i-- > 0;)
      starts.push_back(below(2) ? page * below(40) : 4_KiB * below(600));
    const std::uint64_t count = 1 + below(24);
    auto blocks = test.blocks(starts, stride, count);
    std::set<std::int32_t> kept, announced;
    auto pages_of = [&](std::int32_t id, std::set<std::uint64_t>& out) {
      for (Bytes start : starts) {
        const Bytes at = start + stride * static_cast<std::uint64_t>(id);
        for (std::uint64_t p = at / page; page * p < at + stride; ++p) out.insert(p);
      }
    };
    for (int step = 0; step < 60; ++step) {
      Ids ids;
      for (unsigned i = below(6); i-- > 0;)
        ids.push_back(static_cast<std::int32_t>(below(static_cast<unsigned>(count))));
      switch (below(4)) {
        case 0:
          blocks->keep(ids);
          kept.insert(ids.begin(), ids.end());
          break;
        case 1:
          blocks->announce(ids);
          for (std::int32_t id : ids)
            if (!kept.contains(id)) announced.insert(id);
          test.settle();
          break;
        case 2:
          for (std::int32_t id : blocks->keep_ready(ids)) kept.insert(id);
          break;
        default:
          blocks->drop(ids, {}, below(2) == 0);
          for (std::int32_t id : ids) kept.erase(id), announced.erase(id);
      }
      if (below(4) == 0) test.settle();
      std::set<std::uint64_t> kept_pages, pages;
      for (std::int32_t id : kept) pages_of(id, kept_pages);
      pages = kept_pages;
      std::size_t only_announced = 0;
      for (std::int32_t id : announced)
        if (!kept.contains(id)) pages_of(id, pages), ++only_announced;
      CHECK(test.kept() == page * kept_pages.size());
      // All of them are there: there is memory for all, and the pager has had its turn. It may reclaim
      // others.
      CHECK(test.pool->stats().mapped - test.pool->stats().reclaimable == page * kept_pages.size());
      CHECK(blocks->kept() == kept.size());
      CHECK(blocks->announced() == only_announced);
    }
    test.settle();
    std::set<std::uint64_t> needed;
    for (std::int32_t id : kept) pages_of(id, needed);
    for (std::int32_t id : announced) pages_of(id, needed);
    test.pool->trim(1_GiB, false, Need::announced);
    CHECK(test.mapped() == page * needed.size());
    test.pool->check();
  }
}

TEST(blocks_refuse_what_does_not_fit) {
  RangeTest test(8_MiB, 2_MiB);
  CHECK_THROWS(InvalidArgument, "starts", test.blocks({}, 16_KiB, 4));
  CHECK_THROWS(InvalidArgument, "stride", test.blocks({Bytes{}}, Bytes{}, 4));
  CHECK_THROWS(InvalidArgument, "stride", test.blocks({Bytes{}}, 1_MiB, 3));
  CHECK_THROWS(InvalidArgument, "stride", test.blocks({Bytes{}}, {~std::uint64_t{0} / 2}, 4));
  CHECK_THROWS(InvalidArgument, "count", test.blocks({Bytes{}}, 16_KiB, 0));
  CHECK_THROWS(InvalidArgument, "starts[1]", test.blocks({Bytes{}, 1_MiB + Bytes{1}}, 16_KiB, 64));
  auto blocks = test.blocks({Bytes{}}, 16_KiB, 64);
  CHECK_THROWS(InvalidArgument, "ids[1] is 64", blocks->keep(Ids{0, 64}));
  CHECK_THROWS(InvalidArgument, "ids[0] is -1", blocks->announce(Ids{-1}));
  CHECK_THROWS(InvalidArgument, "ids[0] is 64", blocks->drop(Ids{64}, {}));
  CHECK_THROWS(InvalidArgument, "ids[0] is 64", blocks->ready(Ids{64}));
  CHECK_THROWS(InvalidArgument, "ids[0] is 64", blocks->keep_ready(Ids{64}));
  CHECK(blocks->kept() == 0 && blocks->announced() == 0 && test.mapped() == Bytes{});
}

TEST(to_keep_is_all_or_nothing) {
  RangeTest test(320_KiB, 2_MiB);  // 5 pages
  auto blocks = test.blocks({Bytes{}}, 64_KiB, 32);
  blocks->keep(Ids{0, 1});
  blocks->announce(Ids{2});
  test.settle();
  CHECK_THROWS(OutOfPages, "out of pages", blocks->keep(Ids{1, 2, 3, 4, 5}));
  test.pool->trim(8_MiB, false, Need::announced);
  CHECK(blocks->ready(Ids{1, 2, 3}) == flags({1, 1, 0}));  // 2 is announced, as before
  CHECK(blocks->kept() == 2 && blocks->announced() == 1);
  CHECK(test.kept() == page * 2);
  test.settle();
  blocks->keep(Ids{1, 2, 3});
  CHECK(test.kept() == page * 4);
  test.faults->fail_at(1, 100, Fault::error);
  CHECK_THROWS(DriverError, "", blocks->keep(Ids{7}));
  test.faults->fail_at(0, 0, Fault::error);
  CHECK(blocks->kept() == 4 && test.kept() == page * 4);
  blocks->keep(Ids{7});
  test.pool->check();
}

TEST(what_is_resident_is_kept_without_the_driver) {
  RangeTest test(8_MiB, 2_MiB);
  auto blocks = test.blocks({Bytes{}, 1_MiB}, 16_KiB, 64);
  blocks->keep(Ids{0, 9});
  blocks->drop(Ids{0, 9}, {});
  const auto stalls = test.pool->counters().stalls.get();
  test.faults->fail_at(1, 1000, Fault::error);  // any call
  CHECK(blocks->keep_ready(Ids{20, 1, 9, 9, 40}) == (Ids{1, 9, 9}));
  blocks->keep(Ids{0, 8, 10});
  CHECK(blocks->keep_if_ready(Ids{}));
  CHECK(!blocks->keep_if_ready(Ids{0, 20}));
  test.faults->fail_at(0, 0, Fault::error);
  CHECK(blocks->kept() == 5);
  CHECK(test.pool->counters().stalls.get() == stalls);
  blocks->keep(Ids{20});
  CHECK(test.pool->counters().stalls.get() == stalls + 1);
}

TEST(dropped_pages_wait_for_the_work_on_them) {
  RangeTest test(512_KiB, 2_MiB);
  auto blocks = test.blocks({Bytes{}}, 64_KiB, 32);
  blocks->keep(Ids{0, 1, 2, 3, 4, 5, 6, 7});
  test.faults->hold_events(true);
  test.pool->epochs().mark({});
  const Fence until = test.fence();
  blocks->drop(Ids{0, 1}, until);
  blocks->drop(Ids{2}, until, true);
  blocks->drop(Ids{3}, {});
  test.settle();
  CHECK(test.mapped() == page * 7);  // 2 is Retiring
  blocks->keep(Ids{20});             // of what nobody works on
  CHECK(blocks->ready(Ids{0, 1, 3}) == flags({1, 1, 0}));
  test.faults->hold_events(false);
  finish_work();
  test.settle();
  CHECK(blocks->ready(Ids{2}) == flags({0}));  // it was to be unmapped
  blocks->keep(Ids{21, 22, 23});
  CHECK(blocks->ready(Ids{0, 1}) == flags({0, 0}));
  test.pool->check();
}

TEST(to_drop_what_is_not_needed_changes_nothing) {
  RangeTest test(8_MiB, 2_MiB);
  auto blocks = test.blocks({Bytes{}}, 16_KiB, 64);
  blocks->keep(Ids{5, 5});
  blocks->keep(Ids{5});
  blocks->drop(Ids{6, 7, 40}, {});
  CHECK(test.kept() == page);
  blocks->drop(Ids{5, 5}, {});
  CHECK(test.kept() == Bytes{} && blocks->kept() == 0);
  blocks->drop(Ids{5}, {});
  CHECK(test.mapped() == page);
}

TEST(an_mla_cache_shares_its_two_mebibyte_pages) {
  // 27 layers x 18 KiB: a block has 486 KiB side by side, and pages hold 4.2 of them.
  TestPool pool(64_MiB);
  auto lease = pool.pool->reserve({.page_bytes = 2_MiB, .extent_bytes = 64_MiB, .kind = {0}, .zeroed = true});
  auto range = std::make_shared<Range>(pool.pager, lease);
  auto blocks = Blocks::make(range, {{Bytes{}}, 486_KiB, 128});
  blocks->keep(Ids{3, 4});  // KiB 1458-2430
  CHECK(pool.pool->stats().kept == 4_MiB);
  blocks->keep(Ids{5, 6, 7, 8});  // to KiB 4374, on page 2
  CHECK(pool.pool->stats().kept == 6_MiB);
  blocks->drop(Ids{3, 4}, {});
  CHECK(pool.pool->stats().kept == 4_MiB);
  Ids all;
  for (std::int32_t id = 0; id < 128; ++id) all.push_back(id);
  blocks->keep(all);
  CHECK(pool.pool->stats().kept == 62_MiB);  // 60.75 MiB
  pool.pool->check();
}

TEST(the_end_of_a_range_gives_all_back) {
  RangeTest test(8_MiB, 2_MiB);
  auto blocks = test.blocks({Bytes{}}, 64_KiB, 32);
  blocks->keep(Ids{0, 1});
  blocks->announce(Ids{7});
  test.range->end();
  test.range->end();
  test.settle();
  CHECK(test.pool->stats().mapped == Bytes{});
  CHECK_THROWS(Closed, "range", blocks->keep(Ids{0}));
  CHECK_THROWS(Closed, "range", blocks->announce(Ids{0}));
  CHECK_THROWS(Closed, "range", blocks->drop(Ids{0}, {}));
  CHECK_THROWS(Closed, "range", test.blocks({Bytes{}}, 64_KiB, 32));
  CHECK(blocks->kept() == 0 && blocks->announced() == 0);
  blocks.reset();
  test.range.reset();
  test.settle();
  CHECK(test.pool->stats().reservations_leased == 0);
  test.pool->check();
}

TEST(a_closed_pool_gets_back_what_is_dropped) {
  RangeTest test(8_MiB, 2_MiB);
  auto blocks = test.blocks({Bytes{}}, 64_KiB, 32);
  blocks->keep(Ids{0, 1, 2});
  test.pool->close();
  blocks->drop(Ids{0}, {});
  CHECK(test.pool->stats().created == page * 2);
  blocks->drop(Ids{1}, {}, true);
  CHECK(test.pool->stats().created == page);
  CHECK_THROWS(Closed, "closed", blocks->keep(Ids{9}));
  CHECK(blocks->kept() == 1);
  blocks.reset();
  CHECK(test.pool->stats().created == Bytes{});
}

TEST(nobody_needs_a_range_whose_blocks_have_gone) {
  RangeTest test(8_MiB, 2_MiB);
  auto blocks = test.blocks({Bytes{}}, 64_KiB, 32);
  blocks->keep(Ids{0, 1});
  blocks->announce(Ids{2});
  blocks.reset();
  test.settle();
  CHECK(test.kept() == Bytes{});
  test.pool->trim(8_MiB, false, Need::announced);
  CHECK(test.mapped() == Bytes{});
}
