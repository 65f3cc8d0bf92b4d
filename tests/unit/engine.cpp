// A Growth, with the pager beside it.
#include "base/error.h"
#include "check.h"
#include "fixtures.h"

using namespace vmm;

namespace {
constexpr Bytes record{256};  // 256 tokens fill a page of 64 KiB
}

TEST(growth_maps_what_is_asked_for_and_the_pager_one_page_more) {
  TestPool test(16_MiB);
  auto growth = test.grow(test.reserve(1_MiB, 4), record);
  CHECK(growth->max_tokens() == Tokens{4096});
  CHECK(growth->advance({1}) == Tokens{256});
  CHECK(test.pool->stats().mapped == 256_KiB);
  test.settle();
  CHECK(test.pool->stats().mapped == 512_KiB);
  CHECK(test.pool->stats().reclaimable == 256_KiB);
  CHECK(test.pool->counters().stalls.get() == 1);
  CHECK(growth->advance({257}) == Tokens{512});  // was ahead: no stall
  CHECK(test.pool->counters().stalls.get() == 1);
  test.settle();
  CHECK(test.pool->stats().mapped == 768_KiB);
  CHECK(growth->advance({4096}) == Tokens{4096});
  test.settle();
  CHECK(test.pool->stats().mapped == 4_MiB);
  test.pool->check();
}

TEST(growth_past_the_end_changes_nothing) {
  TestPool test(16_MiB);
  auto growth = test.grow(test.reserve(1_MiB), record);
  growth->advance({10});
  CHECK_THROWS(InvalidArgument, "max_tokens is 4096", growth->advance({4097}));
  CHECK(growth->frontier() == Tokens{10});
}

TEST(a_growth_that_does_not_fit_keeps_nothing) {
  TestPool test(1_MiB);
  auto first = test.reserve(1_MiB);
  auto second = test.reserve(1_MiB);
  auto growth = Growth::make(test.pager, {{first, 0, 1, record}, {second, 0, 1, record}});
  CHECK_THROWS(OutOfPages, "budget 1048576", growth->advance({4096}));
  CHECK(growth->frontier() == Tokens{0});
  CHECK(test.pool->stats().kept == Bytes{});
  CHECK(growth->advance({2048}) == Tokens{2048});
  test.pool->check();
}

TEST(admission_fails_before_anything_is_announced) {
  TestPool test(1_MiB);
  const std::vector growths{test.grow(test.reserve(1_MiB), record), test.grow(test.reserve(1_MiB), record)};
  CHECK_THROWS(OutOfPages, "asked for 2097152", admit(growths, {4096}));
  test.settle();
  CHECK(test.pool->stats().mapped == Bytes{});
  admit(growths, {2000});
  test.settle();
  CHECK(test.pool->stats().mapped == 1_MiB);
  growths[0]->advance({2000});
  growths[1]->advance({2000});
  CHECK(test.pool->counters().stalls.get() == 0);
}

TEST(the_pager_does_not_evict_for_a_guess) {
  TestPool test(1_MiB);
  auto idle = test.reserve(512_KiB);
  map(*idle, 0, 8);
  idle.reset();
  auto growth = test.grow(test.reserve(1_MiB), record);
  growth->advance({8 * 256});  // fills the budget
  test.settle();
  CHECK(test.pool->stats().reclaimable == 512_KiB);  // the look-ahead page was not worth an eviction
  growth->advance({9 * 256});                        // but a need is
  CHECK(test.pool->stats().reclaimable < 512_KiB);
  test.pool->check();
}

TEST(a_guess_does_not_press_the_other_owners_of_a_budget) {
  auto budget = std::make_shared<LocalBudget>(1_MiB);
  TestPool one({}, budget);
  TestPool two({}, budget);
  auto idle = one.reserve(512_KiB);
  map(*idle, 0, 8);
  idle.reset();
  auto growth = two.grow(two.reserve(1_MiB), record);
  growth->advance({8 * 256});
  two.settle();
  one.settle();
  CHECK(one.pool->stats().mapped == 512_KiB);
}

TEST(truncated_tokens_are_reclaimable_and_come_back) {
  TestPool test(2_MiB);
  auto growth = test.grow(test.reserve(1_MiB), record);
  growth->advance({4096});
  CHECK(growth->truncate({300}) == Tokens{512});
  CHECK(test.pool->stats().kept == 128_KiB);
  CHECK(test.pool->stats().reclaimable == 896_KiB);
  CHECK_THROWS(InvalidArgument, "more than there are", growth->truncate({301}));
  CHECK(growth->advance({4096}) == Tokens{4096});  // nothing had to be mapped
  CHECK(test.pool->counters().stalls.get() == 1);
  growth->truncate({0});
  auto other = test.reserve(2_MiB);
  map(*other, 0, 32);
  test.pool->check();
}

TEST(scrub_zeroes_a_write_that_failed) {
  TestPool test(2_MiB);
  auto lease = test.reserve(1_MiB, 2);
  auto growth = test.grow(lease, record);
  growth->advance({20});
  for (Bytes extent : {Bytes{}, 1_MiB}) *bytes_at(*lease, extent + record * 10) = 9;
  growth->scrub({10}, {20});
  for (Bytes extent : {Bytes{}, 1_MiB}) CHECK(*bytes_at(*lease, extent + record * 10) == 0);
  CHECK_THROWS(InvalidArgument, "from, to", growth->scrub({0}, {4000}));
}

TEST(recycled_whole_and_still_mapped) {
  TestPool test(16_MiB);
  {
    auto growth = test.grow(test.reserve(1_MiB, 4), record);
    growth->advance({4096});
  }
  CHECK(test.pool->stats().reservations_idle == 1);
  auto smaller = test.reserve(1_MiB, 2);  // fits into the first two extents
  auto growth = test.grow(smaller, record);
  growth->advance({4096});
  CHECK(test.pool->counters().stalls.get() == 1);
  CHECK(test.pool->counters().reservations_adopted.get() == 1);
  CHECK(test.pool->stats().reclaimable == 2_MiB);
  test.pool->check();
}

TEST(a_pager_that_fails_leaves_the_work_to_the_caller) {
  TestPool test(16_MiB);
  auto growth = test.grow(test.reserve(1_MiB), record);
  growth->advance({1});
  test.faults->fail_at(1, 1'000, Fault::error);
  test.settle();
  test.faults->fail_at(0, 0, Fault::error);
  CHECK(growth->advance({257}) == Tokens{512});
  CHECK(test.pool->counters().stalls.get() == 2);
  CHECK(!test.pool->log().drain().empty());
  test.pool->check();
}

TEST(an_unmapping_that_fails_is_tried_again) {
  TestPool test(16_MiB);
  auto lease = test.reserve(1_MiB);
  map(*lease, 0, 8);
  retire(*lease, 0, 8);
  test.faults->fail_at(1, 1, Fault::error);
  const auto next = test.pager->poll(test.clock->now());
  CHECK(next.at.has_value());
  test.pool->check();
  CHECK(test.pool->stats().free == 256_KiB);  // half of them
  test.settle();
  CHECK(test.pool->stats().free == 256_KiB);  // not at every chance
  test.clock->advance(*next.at - test.clock->now());
  test.settle();
  CHECK(test.pool->stats().free == 512_KiB);
  test.pool->check();
}

namespace {

/// Counts its turns, after each of which there may be more to do.
class Worker final : public Growing {
 public:
  static std::shared_ptr<Worker> make(Pool& pool, Ahead left) {
    return share(std::make_shared<Worker>(pool, left));
  }
  Worker(Pool& pool, Ahead left) : pool_(pool), left_(left) {}
  Ahead map_ahead(Bytes, Pages) override {
    ++turns;
    return left_;
  }
  Pool& pool() const noexcept override { return pool_; }
  int turns = 0;

 private:
  void close() noexcept override {}
  Pool& pool_;
  const Ahead left_;
};

}  // namespace

TEST(who_always_has_more_to_do_does_not_keep_others_from_their_turn) {
  TestPool test(16_MiB);
  const auto endless = Worker::make(*test.pool, Ahead::more), other = Worker::make(*test.pool, Ahead::done);
  test.pager->notify(*endless);
  test.pager->notify(*other);
  for (int i = 0; i < 100 && other->turns == 0; ++i) test.pager->poll(test.clock->now());
  CHECK(other->turns == 1);
  CHECK(endless->turns > 1);  // but first it goes on
}
