// Rows of one slot that share pages, and windows that slide.
#include <cstring>
#include <vector>

#include "base/error.h"
#include "check.h"
#include "engine/growth.h"
#include "sharing_fixture.h"
#include "slots_fixture.h"

using namespace vmm;

namespace {

constexpr std::uint64_t page_tokens = 256;  // of 256 bytes in 64 KiB

/// A growth of rows with two extents each.
struct Rows : TestPool {
  explicit Rows(Bytes size, std::uint32_t count, Tokens window = {}) : TestPool(size) { make(count, window); }
  struct Made {
    std::shared_ptr<Lease> lease;
    std::shared_ptr<Growth> growth;
  };
  Made& make(std::uint32_t count, Tokens window = {}) {
    Made one{reserve(1_MiB, 2 * count), nullptr};
    one.growth = Growth::make(pager, {{one.lease, 0, 2 * count, {256}, window}});
    return made.emplace_back(std::move(one));
  }
  unsigned char* token(const Made& one, std::uint32_t row, std::uint64_t at) {
    return bytes_at(*one.lease, 1_MiB * (2 * row + 1) + Bytes{256} * at);
  }
  void write(const Made& one, std::uint32_t row, std::uint64_t from, std::uint64_t to, int mark) {
    for (std::uint64_t at = from; at < to; ++at) std::memset(token(one, row, at), mark, 256);
  }
  bool holds(const Made& one, std::uint32_t row, std::uint64_t from, std::uint64_t to, int mark) {
    for (std::uint64_t at = from; at < to; ++at)
      for (int i = 0; i < 256; ++i)
        if (token(one, row, at)[i] != mark) return false;
    return true;
  }
  std::vector<Made> made;
};

}  // namespace

TEST(rows_in_another_order_share_what_they_are_to_share_and_no_more) {
  const std::vector<std::vector<std::uint32_t>> orders{{1, 0, 2}, {1, 2, 0}, {0, 0, 1}, {2, 2, 2}, {0, 1, 2}};
  for (const auto& order : orders) {
    Rows test(16_MiB, 3);
    Rows::Made& one = test.made.front();
    one.growth->advance({600});
    for (std::uint32_t row = 0; row < 3; ++row) test.write(one, row, 0, 600, 10 + static_cast<int>(row));
    GrowthMove move = one.growth->prepare_move(order, {600});
    test.pool->check();
    for (std::uint32_t row = 0; row < 3; ++row)
      CHECK(test.holds(one, row, 0, 600, 10 + static_cast<int>(row)));
    move.finish();
    test.pool->check();
    for (std::uint32_t row = 0; row < 3; ++row) {
      CHECK(test.holds(one, row, 0, 2 * page_tokens, 10 + static_cast<int>(order[row])));
      CHECK(test.holds(one, row, 2 * page_tokens, 600, 10 + static_cast<int>(row)));  // the caller's to copy
    }
    CHECK(one.growth->prepare_move(std::vector<std::uint32_t>{0, 1, 2}, {600}).empty());
    test.write(one, 0, 2 * page_tokens, 600, 7);
    CHECK(!test.holds(one, 1, 2 * page_tokens, 600, 7) && !test.holds(one, 2, 2 * page_tokens, 600, 7));
  }
}

TEST(rows_that_share_all_whole_pages_have_nothing_to_move) {
  Rows test(16_MiB, 3);
  Rows::Made& one = test.made.front();
  one.growth->advance({600});
  one.growth->prepare_move(std::vector<std::uint32_t>{1, 1, 1}, {600}).finish();
  CHECK(one.growth->prepare_move(std::vector<std::uint32_t>{2, 0, 1}, {600}).empty());
  CHECK(test.pool->stats().saved == 64_KiB * (2 * 2 * 2));
}

TEST(taken_rows_are_made_private_where_they_are_cut_back) {
  Rows test(16_MiB, 2);
  test.made.reserve(2);
  Rows::Made &from = test.made.front(), &to = test.make(3);
  from.growth->advance({600});
  for (std::uint32_t row = 0; row < 2; ++row) test.write(from, row, 0, 600, 10 + static_cast<int>(row));
  to.growth->take_rows(*from.growth, std::vector<std::uint32_t>{1, 0, 1}, {600});
  CHECK(test.pool->stats().saved == 64_KiB * (3 * 2 * 2));
  to.growth->truncate({300});
  test.pool->check();
  CHECK(test.holds(to, 0, 0, 300, 11) && test.holds(to, 1, 0, 300, 10) && test.holds(to, 2, 0, 300, 11));
  test.write(to, 2, 300, 500, 5);
  CHECK(test.holds(from, 1, 0, 600, 11) && test.holds(to, 0, 0, 300, 11));
  CHECK_THROWS(InvalidArgument, "rows has 2",
               to.growth->take_rows(*from.growth, std::vector<std::uint32_t>{2, 0, 1}, {600}));
}

TEST(rows_that_are_written_alike_have_one_page) {
  Rows test(16_MiB, 4);
  Rows::Made& one = test.made.front();
  const std::vector<std::uint32_t> like{0, 0, 2, 2};
  one.growth->advance_alike(like, {600});
  test.pool->check();
  CHECK(test.pool->stats().kept == 64_KiB * (2 * (2 * 3 + 2 * 1)));
  test.write(one, 0, 0, 600, 3);
  CHECK(test.holds(one, 1, 0, 2 * page_tokens, 3) && !test.holds(one, 1, 2 * page_tokens, 600, 3));
  CHECK(!test.holds(one, 2, 0, 1, 3));
  one.growth->advance({800});
  test.pool->check();
}

/// A window of 300 tokens that has just left the first page of both extents, of three.
struct LeftPage : Rows {
  LeftPage() : Rows(16_MiB, 1, {300}) {
    one().growth->advance({600});
    next = one().growth->slide({300}, {600}).count;
  }
  Made& one() { return made.front(); }
  Bytes created() const { return pool->stats().created; }
  std::uint64_t next = 0;
};

TEST(the_pager_unmaps_what_a_window_has_left_and_gives_it_to_the_system) {
  LeftPage test;
  CHECK(test.pool->stats().retirements_waiting == 1 && test.created() == 64_KiB * (2 * 3));
  test.settle();
  CHECK(test.pool->stats().retirements_waiting == 0);
  if (!on_cuda()) CHECK(test.created() == 64_KiB * (2 * 2) && test.pool->stats().free == Bytes{});
  CHECK(test.one().growth->slide({test.next}, {600}) == Tokens{512});
  test.pool->check();
}

TEST(what_a_window_has_left_is_unmapped_after_an_eighth_of_a_page_without_the_pager) {
  LeftPage test;
  CHECK(test.next == 300 + page_tokens / 8);
  CHECK(test.one().growth->slide({test.next}, {600}) == Tokens{512});
  CHECK(test.pool->stats().retirements_waiting == 0);
  if (!on_cuda()) CHECK(test.created() == 64_KiB * (2 * 2));
  test.pool->check();
}

TEST(what_a_window_has_left_is_unmapped_in_the_end_although_the_driver_refused_it) {
  LeftPage test;
  test.faults->fail_at(1, 1, Fault::error);  // when it has unmapped half
  CHECK(test.one().growth->slide({test.next}, {600}).count > test.next);
  test.faults->fail_at(0, 0, Fault::error);
  test.pool->check();
  test.clock->advance(std::chrono::seconds(2));
  test.settle();
  CHECK(test.pool->stats().retirements_waiting == 0);
  if (!on_cuda()) CHECK(test.created() == 64_KiB * (2 * 2));
}

TEST(what_a_window_has_left_stays_while_an_open_epoch_may_read_it) {
  Rows test(16_MiB, 1, {300});
  Rows::Made& one = test.made.front();
  one.growth->advance({600});
  test.write(one, 0, 0, 600, 9);
  test.pool->epochs().step({});
  std::uint64_t next = one.growth->slide({300}, {600}).count;
  next = one.growth->slide({next}, {600}).count;
  test.settle();
  CHECK(test.holds(one, 0, 0, 600, 9) && test.pool->stats().retirements_waiting == 1);
  test.pool->epochs().end({});
  finish_work();
  one.growth->slide({next}, {600});
  CHECK(test.pool->stats().retirements_waiting == 0);
  if (!on_cuda()) CHECK(test.pool->stats().created == 64_KiB * (2 * 2));
  test.pool->check();
}

TEST(what_a_window_has_left_goes_back) {
  Rows test(16_MiB, 1, {300});
  Rows::Made& one = test.made.front();
  std::uint64_t next = 0;
  for (std::uint64_t tokens = 100; tokens <= 4000; tokens += 100) {
    const std::uint64_t first = tokens < 400 ? 0 : tokens - 100 + 1 - 300;
    if (first != 0 && first >= next) next = one.growth->slide({first}, {tokens - 100}).count;
    one.growth->advance({tokens});
    const std::uint64_t pages = (tokens + page_tokens - 1) / page_tokens - first / page_tokens;
    CHECK(test.pool->stats().kept == 64_KiB * (2 * pages));
    CHECK(test.pool->stats().created <= 64_KiB * (2 * pages + 2));
    test.pool->check();
  }
  CHECK_THROWS(InvalidArgument, "given up", one.growth->truncate({3000}));
}
