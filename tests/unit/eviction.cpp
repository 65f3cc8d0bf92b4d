// What sets each eviction policy apart from the others.
#include <algorithm>
#include <array>

#include "check.h"
#include "eviction_fixture.h"
#include "policy/eviction/leaf_first.h"
#include "policy/eviction/lfu.h"
#include "policy/eviction/lru.h"
#include "policy/eviction/multi_queue.h"
#include "policy/eviction/predictive.h"
#include "policy/eviction/priority.h"
#include "policy/eviction/s3_fifo.h"
#include "policy/eviction/two_queue.h"

using namespace vmm;

TEST(lru_evicts_by_the_last_use) {
  Lru policy;
  use(policy, {1, 2, 3, 1});
  CHECK((evict(policy, 3) == Numbers{2, 3, 1}));
}

TEST(lfu_counts_uses_and_forgets_them_with_the_unit) {
  Lfu policy;
  use(policy, {1, 1, 1, 2, 2, 3, 4});
  CHECK((evict(policy, 3) == Numbers{3, 4, 2}));
  use(policy, {2});
  CHECK((evict(policy, 2) == Numbers{2, 1}));
}

TEST(two_queue_keeps_what_is_used_again_after_it_left) {
  TwoQueue policy({8});  // 2 in the FIFO, and 4 ghosts
  use(policy, {1, 2, 3, 1});
  CHECK((evict(policy, 1) == Numbers{1}) && policy.ghosts() == 1);  // a use within the FIFO did not count
  use(policy, {1, 4, 5, 6, 7});
  CHECK((evict(policy, 5) == Numbers{2, 3, 4, 5, 1}));  // the FIFO down to its quarter, then the rest
  CHECK(policy.ghosts() == 4);                          // what was kept by LRU is none
}

TEST(s3_fifo_keeps_what_was_used_twice_in_the_small_queue) {
  S3Fifo policy({10});  // 1 in the small queue
  use(policy, {1, 2, 3, 1, 2, 1});
  CHECK((evict(policy, 1) == Numbers{2}) && policy.ghosts() == 1);  // one use more is not enough
  use(policy, {2});                                                 // a ghost comes into the main queue
  CHECK((evict(policy, 3) == Numbers{1, 2, 3}) && policy.ghosts() == 1);
}

TEST(s3_fifo_lets_what_is_used_in_the_main_queue_go_round_again) {
  S3Fifo policy({10});
  use(policy, {1, 2, 3});
  evict(policy, 3);
  use(policy, {2, 3, 1, 2});
  CHECK((evict(policy, 3) == Numbers{3, 1, 2}));
}

TEST(mq_orders_by_the_magnitude_of_uses) {
  MultiQueue policy({10});
  use(policy, {1, 2, 3, 4, 1, 1, 2});
  CHECK((evict(policy, 4) == Numbers{3, 4, 1, 2}));  // 2 and 3 uses are of one magnitude
  CHECK(policy.ghosts() == 4);
  use(policy, {1, 5, 6});  // the first with its 3 uses from before
  CHECK((evict(policy, 3) == Numbers{5, 6, 1}));
}

TEST(mq_lets_fall_what_nobody_has_used_for_a_lifetime) {
  const auto first_to_leave_after = [](std::uint64_t accesses) {
    MultiQueue policy({10});
    use(policy, {1, 1, 1, 1});
    for (std::uint64_t i = 0; i < accesses; ++i) use(policy, {2});
    use(policy, {3, 3});
    return evict(policy, 1);
  };
  CHECK((first_to_leave_after(MultiQueue::lifetime - 10) == Numbers{3}));
  CHECK((first_to_leave_after(MultiQueue::lifetime + 10) == Numbers{1}));  // among those of 2 and 3 uses
}

TEST(priority_comes_before_recency) {
  Priority policy({10});
  const std::array priorities{Priority::recent, Priority::old_context, Priority::system_prompt,
                              Priority::old_context};
  for (std::uint64_t i = 0; i < priorities.size(); ++i) policy.access(unit(i), {.priority = priorities[i]});
  CHECK((evict(policy, 4) == Numbers{1, 3, 0, 2}));
}

TEST(system_prompts_fill_half_of_the_memory_at_most) {
  Priority policy({4});
  for (const std::uint64_t i : {1, 2, 3}) policy.access(unit(i), {.priority = Priority::system_prompt});
  use(policy, {4, 5});
  CHECK((evict(policy, 5) == Numbers{1, 4, 5, 2, 3}));
}

TEST(leaf_first_takes_the_branch_used_longest_ago) {
  LeafFirst policy(std::make_unique<Lru>());
  const auto follow = [&](std::uint64_t which, std::uint64_t parent) {
    policy.access(unit(which), {.parent = unit(parent)});
  };
  use(policy, {1});
  follow(2, 1);
  follow(3, 1);
  follow(4, 2);
  follow(2, 1);
  CHECK((evict(policy, 4) == Numbers{3, 4, 2, 1}));
}

TEST(predictive_keeps_the_kind_that_comes_back) {
  Predictive policy;
  Nanoseconds now{};
  std::uint64_t fresh = 1'000;
  for (int round = 0; round < 200; ++round, now += 5s) {
    policy.access(unit(1 + round % 2), {.at = now, .label = 1, .whole_sequence = true});
    policy.access(unit(fresh++), {.at = now, .label = 2, .whole_sequence = true});  // never comes back
  }
  policy.access(unit(1), {.at = now, .label = 1, .whole_sequence = true});
  policy.access(unit(9), {.at = now + 4s, .label = 2, .whole_sequence = true});
  // Both of label 1 have been idle for longer than the last of label 2, and come back after 10 s.
  const Numbers left = evict(policy, 201, now + 4s);
  CHECK(left.size() == 201 && std::ranges::find(left, 9) != left.end());
  CHECK((evict(policy, 3, now + 4s) == Numbers{1, 2}));  // 2 is due in a second
}

TEST(predictive_learns_what_a_guess_is_worth) {
  Predictive policy;
  Nanoseconds now{};
  std::uint64_t fresh = 1'000;
  // Whoever is guessed to be away for an hour comes back after ten seconds, and the others never do.
  for (int round = 0; round < 200; ++round, now += 5s) {
    policy.access(unit(1 + round % 2), {.at = now, .label = 1, .whole_sequence = true, .guess = 3'600s});
    policy.access(unit(fresh++), {.at = now, .label = 1, .whole_sequence = true, .guess = 10s});
  }
  const Numbers left = evict(policy, 200, now);
  CHECK(left.size() == 200 && std::ranges::all_of(left, [](std::uint64_t each) { return each >= 1'000; }));
}

TEST(predictive_lets_go_of_what_should_have_come_back_by_now) {
  Predictive policy;
  Nanoseconds now{};
  for (int round = 0; round < 300; ++round, now += 2s)
    for (const std::uint64_t which : {1, 2}) policy.access(unit(which), {.at = now});
  policy.access(unit(1), {.at = now});
  policy.access(unit(3), {.at = now});
  CHECK(policy.victim(now + 1s) != unit(1));
  for (; now < 4000s; now += 2s) policy.access(unit(2), {.at = now});
  CHECK((evict(policy, 3, now) == Numbers{1, 3, 2}) && policy.ghosts() == 3);
}

TEST(predictive_would_rather_load_many_bytes_than_few_again) {
  Predictive policy({.fixed = 1ms, .bytes_per_second = 1e9});
  policy.access(unit(1), {.size = {1'000}});  // a millisecond for a thousand bytes
  policy.access(unit(2), {.size = {1'000'000'000}});
  CHECK((evict(policy, 2) == Numbers{2, 1}));
}

TEST(rates_lean_on_the_parent_until_something_is_known) {
  ReuseRates rates;
  const std::array<ReuseRates::Step, 1> one{{{0, 1}}};
  const std::array<ReuseRates::Step, 2> below{{{0, 1}, {1, 5}}}, beside{{{0, 1}, {1, 6}}};
  const auto parent = rates.find(one), child = rates.find(below);
  CHECK(rates.find(one) == parent && rates.find(below) == child && rates.categories() == 3);
  for (int i = 0; i < 1'000; ++i) {
    rates.entered(child, 0);
    if (i % 2 == 0) rates.returned(child, 0);
  }
  CHECK(rates.worth(child, 0) == rates.worth(parent, 0));  // nothing has been refreshed
  rates.refresh();
  // Half come back within the first second: .5 uses for each .75 s, if nothing after it is better.
  CHECK(rates.worth(child, 0) > .64 && rates.worth(child, 0) < .68);
  const auto unseen = rates.find(beside);
  CHECK(rates.worth(unseen, 0) == rates.worth(parent, 0) && rates.worth(parent, 0) > .6);
  for (int i = 0; i < 64; ++i) rates.entered(unseen, 0);  // none comes back: as much as it leans on
  rates.refresh();
  CHECK(rates.worth(unseen, 0) < .35 && rates.worth(unseen, 0) > .25);
}

TEST(what_is_older_than_all_bins_is_worth_nothing) {
  ReuseRates rates;
  CHECK(rates.worth(ReuseRates::root, ReuseRates::bins - 1) == 0);
  CHECK(rates.worth(ReuseRates::root, ReuseRates::bins - 2) > 0);
  CHECK(ReuseRates::edge(0) == 0s && ReuseRates::edge(1) == 1s && ReuseRates::edge(3) == 2s);
  CHECK(ReuseRates::edge(ReuseRates::bins - 1) == 3600s);
}

TEST(the_past_of_rates_fades) {
  ReuseRates rates;
  const auto uses = [&](double count, bool returns) {
    for (double i = 0; i < count; ++i) {
      rates.entered(ReuseRates::root, 0);
      if (returns) rates.returned(ReuseRates::root, 0);
    }
    rates.refresh();
    return rates.worth(ReuseRates::root, 0);
  };
  CHECK(uses(ReuseRates::most_uses, true) > 1.9);
  CHECK(uses(ReuseRates::most_uses / 2, false) < .7);  // halved, these weigh as much as all before them
}

TEST(categories_are_bounded) {
  ReuseRates rates;
  for (std::uint32_t i = 0; i < 2 * ReuseRates::most_categories; ++i) {
    const std::array<ReuseRates::Step, 1> path{{{0, i}}};
    rates.find(path);
  }
  CHECK(rates.categories() == ReuseRates::most_categories);
  const std::array<ReuseRates::Step, 1> another{{{1, 1}}};
  CHECK(rates.find(another) == ReuseRates::root);
}
