// The order of the free slots, and of those whose tokens may be found.
#include "engine/free_slots.h"

#include <algorithm>
#include <random>
#include <tuple>
#include <vector>

#include "check.h"
#include "engine/cached_slots.h"

using namespace vmm;

namespace {

constexpr auto all = [](std::uint32_t) { return true; };
constexpr auto none = [](std::uint32_t) { return false; };

std::vector<std::uint32_t> from_largest(const FreeSlots& slots) {
  std::vector<std::uint32_t> out;
  slots.from_largest([&](std::uint32_t slot) { return out.push_back(slot), true; });
  return out;
}

FreeSlots with_tokens(std::initializer_list<std::uint32_t> tokens) {
  FreeSlots slots(static_cast<std::uint32_t>(tokens.size()));
  for (std::uint32_t slot = 0; slot < tokens.size(); ++slot) slots.set_tokens(slot, tokens.begin()[slot]);
  return slots;
}

}  // namespace

TEST(the_smallest_that_is_enough_or_else_the_largest) {
  const FreeSlots slots = with_tokens({10, 30, 20, 30});
  CHECK(slots.best_fit(5, all) == 0);
  CHECK(slots.best_fit(10, all) == 0);
  CHECK(slots.best_fit(11, all) == 2);
  CHECK(slots.best_fit(21, all) == 1);
  CHECK(slots.best_fit(31, all) == 1);
}

TEST(one_that_may_be_taken_comes_before_one_that_fits) {
  const FreeSlots slots = with_tokens({10, 30, 20, 30});
  CHECK(slots.best_fit(15, [](std::uint32_t slot) { return slot != 2; }) == 1);
  CHECK(slots.best_fit(15, [](std::uint32_t slot) { return slot == 0; }) == 0);
  CHECK(slots.best_fit(40, [](std::uint32_t slot) { return slot % 2 == 0; }) == 2);
  CHECK(slots.best_fit(15, none) == 2);
  CHECK(slots.best_fit(40, none) == 1);
}

TEST(slots_with_as_many_tokens_come_in_their_order) {
  CHECK((from_largest(with_tokens({10, 30, 20, 30})) == std::vector<std::uint32_t>{1, 3, 2, 0}));
  CHECK((from_largest(FreeSlots(3)) == std::vector<std::uint32_t>{0, 1, 2}));
}

TEST(a_slot_that_is_taken_keeps_its_number_of_tokens) {
  FreeSlots slots = with_tokens({10, 30, 20});
  slots.take(1);
  CHECK(slots.count() == 2 && slots.tokens(1) == 30);
  CHECK(slots.best_fit(25, all) == 2);
  slots.put(1, slots.tokens(1));
  CHECK(slots.count() == 3 && slots.best_fit(25, all) == 1);
}

TEST(any_course_is_as_a_look_at_all) {
  std::mt19937 random(1);
  constexpr std::uint32_t count = 12;
  FreeSlots slots(count);
  std::vector<std::uint32_t> tokens(count);
  std::vector<bool> taken(count), may_take(count);
  for (int i = 0; i < 20'000; ++i) {
    const std::uint32_t slot = random() % count, wanted = random() % 8;
    if (taken[slot])
      slots.put(slot, tokens[slot] = random() % 8);
    else
      slots.take(slot);
    taken[slot] = !taken[slot];
    may_take[slot] = random() % 2 == 0;
    std::uint32_t best = count;
    const auto rank = [&](std::uint32_t each) {  // less is better
      const bool enough = tokens[each] >= wanted;
      return std::tuple(!may_take[each], !enough, enough ? tokens[each] : 8 - tokens[each], each);
    };
    for (std::uint32_t each = 0; each < count; ++each)
      if (!taken[each] && (best == count || rank(each) < rank(best))) best = each;
    if (best == count) continue;
    CHECK(slots.best_fit(wanted, [&](std::uint32_t each) { return bool(may_take[each]); }) == best);
  }
}

TEST(cached_slots_are_in_the_order_of_their_last_use) {
  std::mt19937 random(2);
  constexpr std::uint32_t count = 8;
  CachedSlots slots(count);
  std::vector<std::uint32_t> expected;
  for (int i = 0; i < 5'000; ++i) {
    const std::uint32_t slot = random() % count;
    std::erase(expected, slot);  // a slot that is not there may be taken, too
    slots.take(slot);
    for (std::uint32_t uses = random() % 3; uses != 0; --uses) {
      const std::uint32_t used = random() % count;
      slots.use(used);
      std::erase(expected, used);
      expected.push_back(used);
    }
    std::vector<std::uint32_t> order;
    for (const auto& [use, each] : slots.oldest_first()) order.push_back(each);
    CHECK(order == expected && slots.count() == expected.size());
  }
}
