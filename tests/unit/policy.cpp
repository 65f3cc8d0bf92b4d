// The policies that predict. They are pure objects, which are told what was measured.
#include "check.h"
#include "policy/attach_costs.h"
#include "policy/batch_size.h"
#include "policy/growth_predictor.h"
#include "policy/load_rate.h"

using namespace vmm;
using namespace std::chrono_literals;

namespace {

/// `count` iterations of `each`, the first at `start`. Returns when the next would begin.
Nanoseconds iterate(GrowthPredictor& predictor, int count, Nanoseconds each, Nanoseconds start = {}) {
  for (int i = 0; i < count; ++i, start += each) predictor.iteration(start);
  return start;
}

}  // namespace

TEST(without_measurements_the_next_two_iterations_are_asked_for) {
  GrowthPredictor predictor;
  CHECK(predictor.horizon() == 2);
  predictor.delay(1s);
  CHECK(predictor.horizon() == 2);
  predictor.iteration(5s);
  CHECK(predictor.horizon() == 2);
}

TEST(a_delay_that_fits_into_an_iteration_costs_one_more) {
  GrowthPredictor predictor;
  iterate(predictor, 10, 1ms);
  CHECK(predictor.horizon() == 1);
  predictor.delay(1ns);
  CHECK(predictor.horizon() == 2);
  predictor.delay(1ms);
  CHECK(predictor.horizon() == 2);
  predictor.delay(1ms + 1ns);
  CHECK(predictor.horizon() == 3);
}

TEST(the_horizon_covers_the_delay) {
  for (std::int64_t delay = 1; delay < 100'000'000; delay = delay * 3 + 1)
    for (std::int64_t interval = 7; interval < 100'000'000; interval = interval * 5) {
      GrowthPredictor predictor;
      iterate(predictor, 3, Nanoseconds{interval});
      for (int i = 0; i < 20; ++i) predictor.delay(Nanoseconds{delay});
      const auto horizon = static_cast<std::int64_t>(predictor.horizon());
      const bool capped = predictor.horizon() == GrowthPredictor::most;
      CHECK(capped || (horizon - 1) * interval >= delay);
      CHECK((horizon - 2) * interval < delay);  // and no further
    }
}

TEST(the_horizon_is_bounded) {
  GrowthPredictor predictor;
  iterate(predictor, 3, 1ns);
  for (int i = 0; i < 20; ++i) predictor.delay(100s);
  CHECK(predictor.horizon() == GrowthPredictor::most);
}

TEST(iterations_at_one_time_are_no_division_by_zero) {
  GrowthPredictor predictor;
  iterate(predictor, 5, 0ns);
  predictor.delay(1s);
  CHECK(predictor.horizon() == 2);
}

TEST(the_longest_delay_counts_and_is_forgotten_slowly) {
  GrowthPredictor predictor;
  Nanoseconds now = iterate(predictor, 3, 1ms);
  predictor.delay(4ms);
  CHECK(predictor.horizon() == 5);
  predictor.delay(1us);
  CHECK(predictor.horizon() == 5);
  now = iterate(predictor, 300, 1ms, now);
  CHECK(predictor.horizon() >= 4);
  predictor.delay(10ms);  // at once
  CHECK(predictor.horizon() == 11);
  now = iterate(predictor, 700, 1ms, now);
  CHECK(predictor.horizon() > 5 && predictor.horizon() < 8);
  iterate(predictor, 10'000, 1ms, now);
  CHECK(predictor.horizon() == 2);
}

TEST(one_long_interruption_is_not_taken_for_the_rule) {
  GrowthPredictor predictor;
  iterate(predictor, 10, 1ms);
  predictor.delay(1ms);
  predictor.delay(1s);
  CHECK(predictor.horizon() == 9);
  predictor.delay(1s);
  predictor.delay(1s);
  CHECK(predictor.horizon() > 100);
}

TEST(iterations_that_become_slower_or_faster_are_followed) {
  GrowthPredictor predictor;
  Nanoseconds now = iterate(predictor, 50, 1ms);
  for (int i = 0; i < 3; ++i) predictor.delay(8ms);
  CHECK(predictor.horizon() == 9);
  now = iterate(predictor, 100, 8ms, now);
  CHECK(predictor.horizon() == 2 || predictor.horizon() == 3);
  iterate(predictor, 100, 1ms, now);
  CHECK(predictor.horizon() == 9 || predictor.horizon() == 8);
}

TEST(one_slow_iteration_does_not_blind_it) {
  GrowthPredictor predictor;
  const Nanoseconds now = iterate(predictor, 50, 1ms);
  for (int i = 0; i < 3; ++i) predictor.delay(8ms);
  predictor.iteration(now + 9ms);  // of ten times the length
  CHECK(predictor.horizon() >= 4);
}

TEST(a_batch_comes_to_take_about_a_millisecond) {
  BatchSize batch(2 << 20);
  for (int i = 0; i < 20; ++i)  // 100 us for 2 MiB
    batch.took(Nanoseconds{static_cast<std::int64_t>(batch.bytes() * 100'000 / (2 << 20))}, true);
  CHECK(batch.bytes() > 19 << 20 && batch.bytes() < 21 << 20);
  for (int i = 0; i < 20; ++i)  // now 4 ms
    batch.took(Nanoseconds{static_cast<std::int64_t>(batch.bytes() * 4'000'000 / (2 << 20))}, true);
  CHECK(batch.bytes() > 400 << 10 && batch.bytes() < 600 << 10);
}

TEST(a_batch_that_was_not_full_says_only_that_it_was_too_much) {
  BatchSize batch(2 << 20);
  batch.took(1us, false);
  batch.took(Nanoseconds{0}, true);  // by a clock that stands still
  CHECK(batch.bytes() == 2 << 20);
  batch.took(1s, false);
  CHECK(batch.bytes() == 1 << 20);  // one delay by others says little
  for (int i = 0; i < 100; ++i) batch.took(1s, true);
  CHECK(batch.bytes() == BatchSize::least);
  for (int i = 0; i < 100; ++i) batch.took(1ns, true);
  CHECK(batch.bytes() == BatchSize::most);
}

TEST(a_prefix_is_aliased_until_a_copy_is_known_to_be_cheaper) {
  AttachCosts costs;
  const auto copy = [&] { return costs.copy({10}, {}, {1'000}); };
  CHECK(!copy() && !costs.knows_copy());
  costs.copied({8}, {}, 8us);
  CHECK(!copy() && costs.knows_copy());  // nobody knows what an alias costs
  costs.aliased({}, 1s);                 // no page says nothing
  CHECK(!copy());
  costs.aliased({4}, 4us);
  CHECK(!copy());  // as cheap
  costs.aliased({4}, 8us);
  CHECK(copy());
  AttachCosts other;
  other.aliased({1}, 1s);
  CHECK(!other.copy({10}, {}, {1'000}) && !other.knows_copy());
}

TEST(a_copy_leaves_most_of_what_is_free) {
  AttachCosts costs;
  costs.aliased({1}, 2us);
  costs.copied({1}, {}, 1us);
  CHECK(costs.copy({10}, {}, {40}) && !costs.copy({10}, {}, {39}) && !costs.copy({1}, {}, {}));
  CHECK(!costs.copy({}, {}, {}));  // nothing to win
}

TEST(a_page_that_a_copy_lacks_costs_as_much_as_an_alias) {
  AttachCosts costs;
  costs.aliased({10}, 40us);
  costs.copied({10}, {}, 10us);
  CHECK(costs.copy({10}, {7}, {100}) && !costs.copy({10}, {8}, {100}));
  for (int i = 0; i < 20; ++i) costs.copied({10}, {5}, 30us);  // 10 of them for the copy
  CHECK(costs.copy({10}, {7}, {100}) && !costs.copy({10}, {8}, {100}));
  for (int i = 0; i < 10; ++i) costs.copied({10}, {10}, 80us);  // mapping took longer than was thought
  CHECK(costs.copy({10}, {}, {100}) && !costs.copy({10}, {4}, {100}));
}

TEST(after_many_copies_an_alias_shows_whether_it_still_costs_as_much) {
  AttachCosts costs;
  costs.aliased({1}, 9us);
  int copies = 0;
  for (; costs.copy({1}, {}, {100}) || copies == 0; ++copies) costs.copied({1}, {}, 2us);
  CHECK(copies == AttachCosts::copies_in_a_row);
  costs.aliased({1}, 9us);
  CHECK(costs.copy({1}, {}, {100}));
}

TEST(costs_that_change_are_followed_and_one_slow_call_is_not_taken_for_the_rule) {
  AttachCosts costs;
  costs.copied({1}, {}, 4us);
  costs.aliased({1}, 1us);
  costs.aliased({1}, 9us);
  CHECK(!costs.copy({1}, {}, {100}));
  for (int i = 0; i < 20; ++i) costs.aliased({2}, 18us);
  CHECK(costs.copy({1}, {}, {100}));
  for (int i = 0; i < 20; ++i) costs.aliased({100}, 100us);
  CHECK(!costs.copy({1}, {}, {100}));
}

TEST(a_rate_counts_the_time_in_which_anything_is_read) {
  LoadRate rate;
  CHECK(!rate.time_for({100}));
  rate.begun(1ms);
  rate.begun(2ms);
  rate.ended(3ms, {});  // it failed
  CHECK(!rate.time_for({100}));
  rate.ended(5ms, {100});
  CHECK(rate.time_for({100}) == 4ms && rate.time_for({200}) == 8ms && rate.time_for({}) == 0ms);
  rate.begun(100ms);  // it rested meanwhile
  rate.ended(106ms, {400});
  CHECK(rate.time_for({500}) == 10ms);
}

TEST(a_rate_that_changes_is_followed) {
  LoadRate rate;
  Nanoseconds now{};
  const auto reads = [&](int times, Nanoseconds each) {
    for (int i = 0; i < times; ++i) {
      rate.begun(now);
      rate.ended(now += each, {1000});
    }
  };
  reads(1000, 1ms);
  reads(20, 1s);
  CHECK(*rate.time_for({1000}) > 900ms);
}
