// The victim policy: who gives up memory first.
#include <algorithm>
#include <array>
#include <deque>
#include <set>

#include "check.h"
#include "policy/borrowed_first.h"
#include "policy/victim_policy.h"

using namespace vmm;

namespace {

constexpr Pages pages{16};
constexpr Bytes everything{~std::uint64_t{0}};

/// Reservations of sixteen pages of 64 KiB, in windows of four.
struct Scene {
  struct Sets {
    explicit Sets(Pages size) : by_need{PageBits(size), PageBits(size), PageBits(size)}, aged(size) {}

    std::array<PageBits, reclaimable_needs.size()> by_need;
    PageBits aged;
    std::set<std::uint32_t> in_use;
  };

  Sets& add(bool leased, std::uint64_t idle_since, Pages size = pages) {
    Sets& sets = all.emplace_back(size);
    Holding holding{leased, idle_since, 64_KiB, size, {4}, size, {}, {}, &sets.aged, {}};
    for (std::size_t i = 0; i < sets.by_need.size(); ++i) holding.reclaimable[i] = &sets.by_need[i];
    holding.over = [&sets](PageIndex page) { return !sets.in_use.contains(page.value); };
    snapshot.holdings.push_back(std::move(holding));
    return sets;
  }
  void has(Sets& sets, Need need, std::initializer_list<std::uint32_t> which) {
    const auto i = static_cast<std::size_t>(need);
    for (std::uint32_t page : which) sets.by_need[i].set({page}, true);
    snapshot.reclaimable[i] += 64_KiB * which.size();
  }

  /// The reservation that was added last belongs to a new owner.
  void owned(int priority, Bytes borrowed) {
    snapshot.holdings.back().owner = snapshot.owners.size();
    snapshot.owners.push_back({priority, borrowed});
  }

  std::deque<Sets> all;
  Snapshot snapshot;
};

using PageList = std::vector<PageIndex>;

bool are(const std::vector<Victim>& victims, std::vector<std::pair<std::size_t, PageList>> expected) {
  if (victims.size() != expected.size()) return false;
  for (std::size_t i = 0; i < victims.size(); ++i)
    if (victims[i].holding != expected[i].first || victims[i].pages != expected[i].second) return false;
  return true;
}

const VictimPolicy policy;

}  // namespace

TEST(nothing_to_take_is_no_victim) {
  Scene scene;
  scene.add(true, 0);
  CHECK(policy.choose(scene.snapshot, 64_KiB, Need::kept).empty());
  CHECK(policy.aged(scene.snapshot, 64_KiB).empty());
  CHECK(!policy.longest_idle(scene.snapshot));
}

TEST(the_highest_addresses_go_first_and_no_more_than_is_wanted) {
  Scene scene;
  scene.has(scene.add(true, 0), Need::none, {1, 2, 9, 10});
  CHECK(are(policy.choose(scene.snapshot, 128_KiB, Need::kept), {{0, {{9}, {10}}}}));
  CHECK(are(policy.choose(scene.snapshot, 64_KiB + Bytes{1}, Need::kept), {{0, {{9}, {10}}}}));
  CHECK(policy.choose(scene.snapshot, {}, Need::kept).empty());
}

TEST(the_least_needed_go_first_and_nobody_takes_from_his_equals) {
  Scene scene;
  auto& sets = scene.add(true, 0);
  scene.has(sets, Need::none, {1});
  scene.has(sets, Need::guess, {2});
  scene.has(sets, Need::announced, {3});
  CHECK(policy.choose(scene.snapshot, everything, Need::none).empty());
  CHECK(are(policy.choose(scene.snapshot, everything, Need::guess), {{0, {{1}}}}));
  CHECK(are(policy.choose(scene.snapshot, everything, Need::announced), {{0, {{1}}}, {0, {{2}}}}));
  CHECK(are(policy.choose(scene.snapshot, everything, Need::kept), {{0, {{1}}}, {0, {{2}}}, {0, {{3}}}}));
}

TEST(idle_reservations_go_first_the_longest_idle_first_in_whole_windows) {
  Scene scene;
  scene.has(scene.add(true, 0), Need::none, {0});
  scene.has(scene.add(false, 9), Need::none, {0, 1});
  scene.has(scene.add(false, 5), Need::none, {2, 4, 5, 6});
  CHECK(are(policy.choose(scene.snapshot, 64_KiB, Need::none), {{2, {{4}, {5}, {6}}}}));
  CHECK(are(policy.choose(scene.snapshot, 256_KiB, Need::none), {{2, {{2}, {4}, {5}, {6}}}}));
  CHECK(
      are(policy.choose(scene.snapshot, 320_KiB, Need::none), {{2, {{2}, {4}, {5}, {6}}}, {1, {{0}, {1}}}}));
  CHECK(are(policy.choose(scene.snapshot, 448_KiB, Need::kept),
            {{2, {{2}, {4}, {5}, {6}}}, {1, {{0}, {1}}}, {0, {{0}}}}));
  CHECK(policy.longest_idle(scene.snapshot) == 2);
}

TEST(the_parts_of_a_cache_give_up_the_same_tokens) {
  Scene scene;  // four slots of four pages, and of eight pages in the second part
  scene.has(scene.add(true, 0), Need::none, {0, 1, 2, 12, 13});
  scene.has(scene.add(true, 0, {32}), Need::none, {0, 1, 2, 3, 4, 5, 24, 25, 26, 27});
  CHECK(are(policy.choose(scene.snapshot, 64_KiB, Need::kept), {{0, {{13}}}}));
  CHECK(are(policy.choose(scene.snapshot, 192_KiB, Need::kept), {{0, {{13}}}, {1, {{26}, {27}}}}));
  CHECK(are(policy.choose(scene.snapshot, 384_KiB, Need::kept),
            {{0, {{12}, {13}}}, {1, {{24}, {25}, {26}, {27}}}}));
  CHECK(are(policy.choose(scene.snapshot, 576_KiB, Need::kept),
            {{0, {{2}, {12}, {13}}}, {1, {{4}, {5}, {24}, {25}, {26}, {27}}}}));
}

TEST(extents_that_were_used_go_last_the_one_used_longest_ago_first_and_from_its_end) {
  Scene scene;  // four extents of four pages
  scene.has(scene.add(true, 0), Need::none, {0, 1, 4, 5, 8, 9, 12, 13});
  const std::array<std::uint64_t, 4> uses{7, 0, 9, 5};
  scene.snapshot.holdings[0].extent = {4};
  scene.snapshot.holdings[0].uses = uses;
  const PageList order{{5}, {4}, {13}, {12}, {1}, {0}, {9}, {8}};
  for (std::size_t count = 0; count <= order.size(); ++count) {
    PageList expected(order.begin(), order.begin() + static_cast<std::ptrdiff_t>(count));
    std::ranges::sort(expected);
    const auto chosen = policy.choose(scene.snapshot, 64_KiB * count, Need::kept);
    CHECK(count == 0 ? chosen.empty() : are(chosen, {{0, expected}}));
  }
}

TEST(extents_of_one_use_give_up_the_same_tokens) {
  Scene scene;  // two slots of two extents each, and two of one extent with twice as many pages
  scene.has(scene.add(true, 0), Need::none, {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 12, 13});
  scene.has(scene.add(true, 0), Need::none, {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11});
  const std::array<std::uint64_t, 4> uses{3, 3, 8, 8};
  const std::array<std::uint64_t, 2> uses_of_larger{3, 8};
  scene.snapshot.holdings[0].extent = {4};
  scene.snapshot.holdings[0].uses = uses;
  scene.snapshot.holdings[1].extent = {8};
  scene.snapshot.holdings[1].uses = uses_of_larger;
  // The slot with use 3 is full, and gives up half of it, all of it; then that with use 8, which is half
  // full.
  CHECK(are(policy.choose(scene.snapshot, 64_KiB * 8, Need::kept),
            {{0, {{2}, {3}, {6}, {7}}}, {1, {{4}, {5}, {6}, {7}}}}));
  CHECK(are(policy.choose(scene.snapshot, 64_KiB * 16, Need::kept),
            {{0, {{0}, {1}, {2}, {3}, {4}, {5}, {6}, {7}}}, {1, {{0}, {1}, {2}, {3}, {4}, {5}, {6}, {7}}}}));
  CHECK(are(policy.choose(scene.snapshot, 64_KiB * 20, Need::kept),
            {{0, {{0}, {1}, {2}, {3}, {4}, {5}, {6}, {7}, {9}, {13}}},
             {1, {{0}, {1}, {2}, {3}, {4}, {5}, {6}, {7}, {10}, {11}}}}));
}

TEST(extents_without_a_use_go_in_the_order_of_their_whole_reservation) {
  for (const bool told : {false, true}) {  // that nobody knows of a use of any extent changes nothing
    Scene scene;
    scene.has(scene.add(true, 0), Need::none, {0, 1, 2, 12, 13});
    scene.has(scene.add(true, 0, {32}), Need::none, {0, 1, 2, 3, 4, 5, 24, 25, 26, 27});
    const std::array<std::uint64_t, 4> unknown{};
    for (Holding& each : scene.snapshot.holdings) {
      each.extent = {each.size.count / 4};
      if (told) each.uses = unknown;
    }
    CHECK(are(policy.choose(scene.snapshot, 64_KiB, Need::kept), {{0, {{13}}}}));
    CHECK(are(policy.choose(scene.snapshot, 192_KiB, Need::kept), {{0, {{13}}}, {1, {{26}, {27}}}}));
    CHECK(are(policy.choose(scene.snapshot, 576_KiB, Need::kept),
              {{0, {{2}, {12}, {13}}}, {1, {{4}, {5}, {24}, {25}, {26}, {27}}}}));
  }
}

TEST(a_use_protects_only_against_what_is_needed_as_little) {
  Scene scene;
  auto& used = scene.add(true, 0);
  scene.has(used, Need::none, {1});
  scene.has(used, Need::guess, {5});
  const std::array<std::uint64_t, 1> uses{3};
  scene.snapshot.holdings[0].uses = uses;
  scene.has(scene.add(true, 0), Need::guess, {9});
  CHECK(are(policy.choose(scene.snapshot, 64_KiB, Need::kept), {{0, {{1}}}}));
  CHECK(are(policy.choose(scene.snapshot, 128_KiB, Need::kept), {{0, {{1}}}, {1, {{9}}}}));
  CHECK(are(policy.choose(scene.snapshot, 192_KiB, Need::kept), {{0, {{1}}}, {0, {{5}}}, {1, {{9}}}}));
}

TEST(what_work_may_still_use_of_a_used_extent_is_passed_over) {
  Scene scene;
  auto& sets = scene.add(true, 0);
  scene.has(sets, Need::none, {0, 1, 2, 3, 4, 5});
  sets.in_use = {3, 1, 0, 5, 4};
  const std::array<std::uint64_t, 4> uses{2, 1, 0, 0};
  scene.snapshot.holdings[0].extent = {4};
  scene.snapshot.holdings[0].uses = uses;
  CHECK(are(policy.choose(scene.snapshot, 256_KiB, Need::kept), {{0, {{2}}}}));
}

TEST(what_work_may_still_use_is_passed_over) {
  Scene scene;
  auto& sets = scene.add(true, 0);
  scene.has(sets, Need::none, {1, 2, 3});
  sets.in_use = {3};
  CHECK(are(policy.choose(scene.snapshot, 64_KiB, Need::kept), {{0, {{2}}}}));
  sets.in_use = {1, 2, 3};
  CHECK(policy.choose(scene.snapshot, 64_KiB, Need::kept).empty());
}

TEST(what_has_aged_goes_of_all_reservations_page_by_page) {
  Scene scene;
  for (bool leased : {false, true}) {
    auto& sets = scene.add(leased, 1);
    for (std::uint32_t page : {4, 5, 6}) sets.aged.set({page}, true);
    sets.in_use = {6};
  }
  CHECK(are(policy.aged(scene.snapshot, 64_KiB), {{0, {{5}}}}));
  CHECK(are(policy.aged(scene.snapshot, 192_KiB), {{0, {{4}, {5}}}, {1, {{5}}}}));
  CHECK(are(policy.aged(scene.snapshot, everything), {{0, {{4}, {5}}}, {1, {{4}, {5}}}}));
}

TEST(with_one_owner_nobody_has_borrowed_more_than_another) {
  Scene scene;
  scene.has(scene.add(true, 0), Need::none, {1, 2});
  scene.owned(0, {});
  scene.has(scene.add(false, 9), Need::none, {0});
  CHECK(are(BorrowedFirst::choose(scene.snapshot, 128_KiB, Need::kept), {{1, {{0}}}, {0, {{2}}}}));
}

TEST(what_is_borrowed_goes_first_by_need_and_then_by_priority) {
  Scene scene;
  auto& low = scene.add(true, 0);
  scene.owned(-1, 128_KiB);
  auto& high = scene.add(true, 0);
  scene.owned(1, 192_KiB);
  auto& promised = scene.add(true, 0);
  scene.owned(-5, {});  // the lowest priority, but it has borrowed nothing
  scene.has(low, Need::none, {1, 2, 3});
  scene.has(low, Need::announced, {8});
  scene.has(high, Need::none, {4, 5});
  scene.has(high, Need::announced, {9});
  scene.has(promised, Need::none, {6});
  const auto chosen = [&](Bytes wanted) { return BorrowedFirst::choose(scene.snapshot, wanted, Need::kept); };
  CHECK(chosen({}).empty());
  CHECK(are(chosen(64_KiB), {{0, {{3}}}}));
  CHECK(are(chosen(192_KiB), {{0, {{2}, {3}}}, {1, {{5}}}}));
  CHECK(are(chosen(320_KiB), {{0, {{2}, {3}}}, {1, {{4}, {5}, {9}}}}));  // all that is borrowed
  CHECK(are(chosen(384_KiB), {{0, {{2}, {3}}}, {1, {{4}, {5}, {9}}}, {2, {{6}}}}));
  CHECK(are(chosen(everything), {{0, {{1}, {2}, {3}, {8}}}, {1, {{4}, {5}, {9}}}, {2, {{6}}}}));
  low.in_use = {2, 3};
  CHECK(are(chosen(64_KiB), {{0, {{1}}}}));
}

TEST(of_equals_the_one_that_has_borrowed_most_goes_first_idle_or_not) {
  Scene scene;
  scene.has(scene.add(true, 0), Need::none, {1, 2});
  scene.owned(0, 128_KiB);
  scene.has(scene.add(true, 0), Need::none, {3, 4, 5});
  scene.owned(0, 192_KiB);
  scene.has(scene.add(false, 7), Need::none, {0, 1});
  scene.owned(0, 64_KiB);
  const auto chosen = [&](Bytes wanted) { return BorrowedFirst::choose(scene.snapshot, wanted, Need::kept); };
  CHECK(are(chosen(64_KiB), {{2, {{0}, {1}}}}));  // idle ones before leased ones, and a whole window
  CHECK(are(chosen(192_KiB), {{2, {{0}, {1}}}, {1, {{5}}}}));
}
