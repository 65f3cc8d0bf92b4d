// Slots that share the pages of tokens that they have in common.
#include <algorithm>
#include <array>
#include <cstring>

#include "base/error.h"
#include "check.h"
#include "sharing_fixture.h"
#include "slots_fixture.h"

using namespace vmm;

namespace {

/// Slots whose tokens hold a mark each, in all extents.
struct Forks : TestSlots {
  using TestSlots::TestSlots;

  /// Visits the bytes of a token.
  template <class Visit>
  void token(std::uint32_t slot, std::uint64_t at, Visit visit) {
    for (std::uint32_t extent : {2 * slot, 2 * slot + 1})
      visit(bytes_at(*wide, 1_MiB * extent + record * at), record.count);
    visit(bytes_at(*narrow, 1_MiB * slot + Bytes{256} * at), std::uint64_t{256});
  }
  void write(std::uint32_t slot, std::uint64_t from, std::uint64_t to, int mark) {
    for (std::uint64_t at = from; at < to; ++at)
      token(slot, at, [&](unsigned char* bytes, std::uint64_t size) {
        std::memset(bytes, static_cast<int>(at) + mark, size);
      });
  }
  bool holds(std::uint32_t slot, std::uint64_t from, std::uint64_t to, int mark) {
    bool all = true;
    for (std::uint64_t at = from; at < to; ++at)
      token(slot, at, [&](const unsigned char* bytes, std::uint64_t size) {
        const auto expected = static_cast<unsigned char>(static_cast<int>(at) + mark);
        all &= std::all_of(bytes, bytes + size, [&](unsigned char byte) { return byte == expected; });
      });
    return all;
  }
  void fork(std::uint32_t from, std::uint32_t to, std::uint64_t length) {
    slots->fork({from, {length}, slots->passed(from)}, to, {});
    finish_work();
    pool->check();
  }
  bool make_private(std::uint32_t slot, std::uint64_t to) {
    return slots->make_private(slot, {to}, [this] { return pool->epochs().fence(); }, {});
  }
};

}  // namespace

TEST(a_fork_shares_whole_pages_and_copies_the_rest) {
  Forks test(16_MiB);
  test.advance({{0, {100}}});
  test.write(0, 0, 100, 0);
  test.fork(0, 2, 100);
  CHECK((test.mapped(2) == Mapped{5, 5, 1}));
  CHECK(test.slots->limits()[2] == test.slots->limits()[0] && test.slots->kept(2) == Tokens{100});
  CHECK(test.pool->stats().saved == 64_KiB * 8 && test.pool->stats().mapped == 64_KiB * 14);
  CHECK(test.holds(2, 0, 100, 0));
  test.write(0, 100, 109, 1);
  test.write(2, 100, 109, 2);
  CHECK(test.holds(0, 100, 109, 1) && test.holds(0, 0, 100, 0));
  CHECK(test.holds(2, 100, 109, 2) && test.holds(2, 0, 100, 0));
  test.advance({{2, {150}, {109}}, {0, {130}, {109}}});
  test.write(2, 109, 150, 2);
  test.pool->check();
  CHECK(test.holds(0, 0, 100, 0) && test.holds(2, 100, 150, 2));
}

TEST(a_fork_of_fewer_tokens_has_only_their_pages) {
  Forks test(16_MiB);
  test.advance({{0, {100}}});
  test.write(0, 0, 100, 0);
  test.fork(0, 1, 22);
  CHECK((test.mapped(1) == Mapped{2, 2, 1}) && test.holds(1, 0, 22, 0));
  CHECK(test.pool->stats().saved == 64_KiB * 2);
  test.fork(0, 2, 0);
  CHECK((test.mapped(2) == Mapped{0, 0, 0}) && test.slots->limits()[2] == Tokens{});
}

TEST(a_fork_into_pages_that_are_still_mapped_exchanges_them) {
  Forks test(16_MiB, {.tail = {30}, .look_ahead = false});
  test.advance({{0, {100}}, {1, {200}}});
  test.write(0, 0, 100, 0);
  test.write(1, 0, 200, 9);
  truncate(*test.slots, 1, {});
  test.fork(0, 1, 100);
  CHECK(test.holds(1, 0, 100, 0) && test.holds(0, 0, 100, 0));
  CHECK(test.pool->stats().saved == 64_KiB * 8);
  CHECK(test.pool->stats().kept == 64_KiB * (2 * 13 - 8));  // of 130 tokens: 6 + 6 + 1 pages each
}

TEST(a_slot_is_cut_back_into_what_it_shares) {
  for (const std::uint32_t cut : {0, 2}) {
    Forks test(16_MiB);
    test.advance({{0, {100}}});
    test.write(0, 0, 100, 0);
    test.fork(0, 2, 100);
    CHECK(test.slots->shares_pages_beyond(cut, {50}) && !test.slots->shares_pages_beyond(cut, {100}));
    CHECK(test.make_private(cut, 50));
    test.pool->check();
    truncate(*test.slots, cut, {50});
    finish_work();
    drain(test);
    CHECK(!test.slots->shares_pages_beyond(cut, {50}) && test.slots->kept(cut) == Tokens{50});
    CHECK(test.pool->stats().saved == 64_KiB * 4);  // two pages of each wide extent
    CHECK(test.holds(cut, 0, 50, 0));
    test.write(cut, 50, 65, 3);
    CHECK(test.holds(2 - cut, 0, 100, 0));
    test.advance({{cut, {100}, {65}}});
    test.write(cut, 65, 100, 3);
    CHECK(test.holds(2 - cut, 0, 100, 0) && test.holds(cut, 0, 50, 0) && test.holds(cut, 50, 100, 3));
    test.pool->check();
  }
}

TEST(forks_end_in_any_order) {
  std::array<std::uint32_t, 3> order{0, 1, 2};
  do {
    Forks test(16_MiB);
    test.advance({{0, {100}}});
    test.write(0, 0, 100, 0);
    test.fork(0, 1, 100);
    test.fork(1, 2, 80);
    for (std::size_t i = 0; i < order.size(); ++i) {
      truncate(*test.slots, order[i], {});
      drain(test);
      for (std::size_t left = i + 1; left < order.size(); ++left)
        CHECK(test.holds(order[left], 0, order[left] == 2 ? 80 : 100, 0));
    }
    CHECK(test.pool->stats().kept == Bytes{} && test.pool->stats().saved == Bytes{});
    // And the slots serve others, whose pages may lie elsewhere now.
    test.advance({{0, {50}}, {1, {349}}, {2, {1}}});
    for (std::uint32_t slot = 0; slot < 2; ++slot) test.write(slot, 0, 50, static_cast<int>(slot));
    CHECK(test.holds(0, 0, 50, 0) && test.holds(1, 0, 50, 1));
    test.slots.reset();
    test.wide.reset();
    test.narrow.reset();
    require_nothing_left(test);
  } while (std::ranges::next_permutation(order).found);
}

TEST(a_lost_driver_call_leaves_no_fork) {
  for (std::int64_t n = 1; n < 60; ++n) {
    Forks test(16_MiB);
    test.advance({{0, {100}}, {1, {30}}});
    test.write(0, 0, 100, 0);
    truncate(*test.slots, 1, {});
    const bool failed = fails(test, n, [&] { test.slots->fork({0, {100}}, 1, {}); });
    const bool reached = !test.faults->last_failed().empty();
    test.faults->fail_at(0, 0, Fault::error);
    CHECK(test.holds(0, 0, 100, 0) && (reached || !failed));
    if (failed) {
      CHECK(test.pool->stats().kept == 64_KiB * 11 && test.slots->limits()[1] == Tokens{});
      test.pool->reclaiming().drain_retired(true);
      test.pool->check();
      CHECK(test.pool->stats().saved == Bytes{});
      test.fork(0, 1, 100);
    }
    CHECK(test.holds(1, 0, 100, 0));
    CHECK(test.pool->stats().saved == 64_KiB * 8 && test.pool->stats().kept == 64_KiB * 14);
    if (!reached) return CHECK(n > 8);
  }
  CHECK(!"it fails for ever");
}
