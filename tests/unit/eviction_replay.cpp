// Streams of uses, replayed with policies, and the best that there can be.
#include "simulate/eviction_replay.h"

#include <algorithm>
#include <random>
#include <set>

#include "base/error.h"
#include "check.h"
#include "eviction_fixture.h"
#include "simulate/belady.h"

using namespace vmm;

namespace {

/// The fewest misses that any choice of victims can have, found by trying all.
std::uint64_t fewest_misses(const Numbers& uses, std::size_t at, std::set<std::uint64_t> held,
                            std::size_t most) {
  while (at < uses.size() && held.contains(uses[at])) ++at;
  if (at == uses.size()) return 0;
  held.insert(uses[at]);
  if (held.size() <= most) return 1 + fewest_misses(uses, at + 1, held, most);
  std::uint64_t best = uses.size();
  for (const std::uint64_t victim : std::set(held)) {
    held.erase(victim);
    best = std::min(best, 1 + fewest_misses(uses, at + 1, held, most));
    held.insert(victim);
  }
  return best;
}

}  // namespace

TEST(nothing_misses_less_than_belady) {
  std::mt19937_64 random(7);
  for (int round = 0; round < 40; ++round) {
    Numbers uses;
    std::vector<BlockRequest> requests;
    for (int i = 0; i < 12; ++i) {
      uses.push_back(random() % 5);
      requests.push_back({Nanoseconds{i}, {uses.back()}});
    }
    const EvictionStream stream = EvictionStream::of_blocks(requests);
    const EvictionFigures best = stream.replay("opt", {2}, false);
    CHECK(best.accesses - best.hits == fewest_misses(uses, 0, {}, 2));
    for (const std::string_view name : eviction_policy_names())
      CHECK(stream.replay(name, {2}, false).hits <= best.hits);
  }
}

TEST(hits_are_counted_when_a_request_arrives_and_its_first_block_is_used_last) {
  const EvictionStream stream = EvictionStream::of_blocks({{0s, {1, 2, 3}}, {1s, {1, 2, 3}}, {2s, {1, 4}}});
  const EvictionFigures room = stream.replay("lru", {4}, false);
  CHECK(room.accesses == 8 && room.hits == 4 && room.evictions == 0 && room.missing.count == 4);
  // Two blocks: 3 leaves, and 1 and 2 stay; then 3, 2 and 1 come again, of which 1 and 2 had been there.
  const EvictionFigures two = stream.replay("lru", {2}, false);
  CHECK(two.accesses == 8 && two.hits == 3 && two.wanted.count == 8 && two.missing.count == 5);
}

TEST(a_sequence_is_there_whole_or_not_at_all) {
  const std::vector<Turn> turns{{0s, 1, {0}, {10}}, {1s, 2, {0}, {10}}, {2s, 1, {10}, {20}},
                                {3s, 2, {8}, {10}}, {4s, 3, {0}, {5}},  {5s, 3, {5}, {6}}};
  const EvictionStream stream = EvictionStream::of_turns(turns);
  const EvictionFigures lru = stream.replay("lru", {20}, false);
  CHECK(lru.accesses == 3 && lru.hits == 2);  // what nobody goes on from is neither hit nor miss
  CHECK(lru.wanted.count == 23 && lru.missing.count == 8 && lru.evictions == 2);
  const EvictionFigures room = stream.replay("lru", {40}, false);
  CHECK(room.hits == 3 && room.missing.count == 0 && room.evictions == 0);
}

TEST(a_turn_that_does_not_fit_leaves_at_once) {
  for (const std::string_view name : eviction_policy_names()) {
    const EvictionStream stream = EvictionStream::of_turns({{0s, 1, {0}, {50}}, {1s, 1, {50}, {50}}});
    const EvictionFigures found = stream.replay(name, {20}, false);
    CHECK(found.hits == 0 && found.evictions == 2);
  }
}

TEST(blocks_up_to_where_full_ones_part_are_a_system_prompt) {
  // The second prompt parts from the first after two blocks. A third, of other blocks, takes all the memory
  // but that of the system's prompt, and the fourth goes on from that.
  const auto hits_beyond_lru = [](bool partial) {
    const EvictionStream stream = EvictionStream::of_blocks(
        {{0s, {1, 2, 3}, partial}, {1s, {1, 2, 4, 5}}, {2s, {1, 2}}, {3s, {20, 21, 22, 23}}, {4s, {1, 2}}});
    return stream.replay("priority", {4}, false).hits - stream.replay("lru", {4}, false).hits;
  };
  CHECK(hits_beyond_lru(false) == 2);
  CHECK(hits_beyond_lru(true) == 0);  // it may have gone on from its last block when that was full
}

TEST(a_trace_whose_blocks_follow_each_other_in_a_circle_ends) {
  const EvictionStream stream = EvictionStream::of_blocks(
      {{0s, {1, 2, 3, 1}}, {1s, {3, 2, 1}}, {2s, {2, 2, 2}}, {3s, {4, 3, 2, 1}}, {4s, {1, 2, 3, 4}}});
  for (const std::string_view name : eviction_policy_names())
    for (const std::uint64_t capacity : {1, 2, 3, 10})
      for (const bool leaf_first : {false, true})
        CHECK(stream.replay(name, {capacity}, leaf_first).accesses == 18);
}

TEST(an_unknown_policy_is_refused) {
  CHECK_THROWS(InvalidArgument, "policy is 'best'",
               EvictionStream::of_blocks({{0s, {1}}}).replay("best", {1}, false));
}
