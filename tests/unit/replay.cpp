// Replays of requests that begin with the same tokens, and the bookkeeping of blocks that they are compared
// with.
#include "simulate/replay.h"

#include <numeric>
#include <vector>

#include "base/error.h"
#include "check.h"
#include "simulate/block_cache_memory.h"
#include "simulate/vmm_memory.h"

using namespace vmm;

namespace {

using TokenList = std::vector<KvMemory::Token>;

constexpr Bytes record{128 * 1024};  // 16 tokens in 2 MiB: a page and a block hold the same
constexpr std::uint32_t block = 16;

TokenList count_from(int first, std::size_t count) {
  TokenList tokens(count);
  std::iota(tokens.begin(), tokens.end(), first);
  return tokens;
}

/// Sequences in a memory, without a scheduler.
struct Engine {
  KvMemory& memory;
  std::size_t chunk = 1024;  // tokens that a step computes

  bool grow(std::uint32_t place, std::size_t length) const {
    const auto slot = static_cast<std::int32_t>(place), to = static_cast<std::int32_t>(length);
    return memory.step(std::span(&slot, 1), std::span(&to, 1));
  }
  /// Opens a sequence, computes what is not there, and says how much was.
  std::pair<std::uint32_t, std::uint64_t> begin(const TokenList& tokens) const {
    const auto [place, cached] = memory.open_prompt(tokens, {});
    for (std::size_t from = cached.count; from < tokens.size(); from += chunk) {
      const std::size_t to = std::min(from + chunk, tokens.size());
      CHECK(grow(place, to));
      const Nanoseconds over = memory.run(Nanoseconds{1'000'000});
      memory.commit(place, std::span(tokens).subspan(from, to - from));
      memory.sleep_until(over);
    }
    return {place, cached.count};
  }
  std::uint64_t serve(const TokenList& tokens) const {
    const auto [place, cached] = begin(tokens);
    memory.close(place);
    return cached;
  }
};

BlockCacheMemory blocks(std::uint64_t count, std::uint32_t places = 8) {
  return BlockCacheMemory({record * block * count, places, record, block});
}

VmmMemoryOptions vmm_options(std::uint64_t pages, std::uint32_t cached = 64) {
  VmmMemoryOptions options;
  options.world.budget = 2_MiB * pages;
  options.places = 8;
  options.cached = cached;
  options.max_tokens = {1024};
  options.records = {record};
  return options;
}

/// Four requests, of which the second and the fourth begin with blocks of the first.
std::vector<Request> conversation() {
  constexpr std::uint32_t of_block = 64;
  const auto at = [](int seconds) { return Nanoseconds{1'000'000'000LL * seconds}; };
  return {{at(0), 128, 4, {0, 64}, of_block},
          {at(1), 200, 4, {0, 64, 128, 192}, of_block},
          {at(2), 100, 4, {256, 320}, of_block},
          {at(3), 64, 4, {0}, of_block}};
}

ReplayFigures replayed(const std::vector<Request>& requests, std::shared_ptr<KvMemory> memory,
                       std::uint32_t batch_tokens = 512) {
  Roofline roofline;
  roofline.flops_per_token = 1e9;
  roofline.flops_per_second = 1e14;
  ReplayOptions options;
  options.batch_tokens = batch_tokens;
  options.max_tokens = 1024;
  Replay replay(requests, roofline, options, std::move(memory));
  while (replay.run(1000)) {
  }
  return replay.figures();
}

}  // namespace

TEST(tokens_of_blocks_are_shared_and_others_are_not) {
  const Request request{{}, 10, 3, {100, 200}, 4};
  TokenList tokens;
  tokens_of(request, 7, 0, 13, tokens);
  CHECK(tokens == (TokenList{100, 101, 102, 103, 200, 201, 202, 203, -8, -8, -8, -8, -8}));
  tokens_of(request, 7, 3, 9, tokens);
  CHECK(tokens == (TokenList{103, 200, 201, 202, 203, -8}));
  const Request shorter{{}, 6, 2, {100, 200}, 4};  // the last block is not whole; answers are nobody else's
  tokens_of(shorter, 0, 4, 8, tokens);
  CHECK(tokens == (TokenList{200, 201, -1, -1}));
}

TEST(blocks_are_found_whole_and_never_the_last_token) {
  BlockCacheMemory memory = blocks(64);
  const Engine engine{memory};
  CHECK(engine.serve(count_from(0, 40)) == 0);
  CHECK(engine.serve(count_from(0, 40)) == 32);
  CHECK(engine.serve(count_from(0, 33)) == 32);
  CHECK(engine.serve(count_from(0, 32)) == 16);
  CHECK(engine.serve(count_from(16, 40)) == 0);  // the same tokens behind others are others
}

TEST(blocks_go_least_recently_used_first_and_from_the_end) {
  BlockCacheMemory memory = blocks(8);
  const Engine engine{memory};
  CHECK(engine.serve(count_from(0, 49)) == 0);    // three blocks to find, and one that is not whole
  CHECK(engine.serve(count_from(100, 49)) == 0);  // three more
  CHECK(engine.serve(count_from(0, 17)) == 16);   // the first is used again
  CHECK(engine.serve(count_from(200, 49)) == 0);  // takes two that nobody finds, and two of the first
  CHECK(engine.serve(count_from(100, 49)) == 48);
  CHECK(engine.serve(count_from(0, 49)) == 16);
}

TEST(blocks_of_open_sequences_stay) {
  BlockCacheMemory memory = blocks(8);
  const Engine engine{memory};
  const auto [place, cached] = engine.begin(count_from(0, 64));
  CHECK(engine.serve(count_from(100, 64)) == 0);
  CHECK(engine.serve(count_from(200, 64)) == 0);
  const auto [other, found] = memory.open_prompt(count_from(0, 64), {});
  CHECK(found.count == 48 && memory.usage().held == record * 64);  // shared, and held once
  CHECK(!engine.grow(other, 16 * 9));
  CHECK(engine.grow(other, 16 * 7));
  memory.close(place);
  CHECK_THROWS(std::out_of_range, "", memory.close(8));
}

TEST(vmm_finds_what_a_block_cache_finds) {
  BlockCacheMemory theirs = blocks(512);
  VmmMemory ours(vmm_options(512));
  for (std::size_t length : {40U, 40U, 200U, 100U, 33U, 32U, 200U, 999U}) {
    const std::uint64_t found = Engine{ours}.serve(count_from(0, length));
    CHECK(found == Engine{theirs}.serve(count_from(0, length)));
  }
  CHECK(ours.prefixes().found.count == 32 + 32 + 96 + 32 + 16 + 192 + 192);
}

TEST(a_closed_sequence_stays_while_there_are_slots) {
  VmmMemory many(vmm_options(512, 64)), few(vmm_options(512, 0));
  for (int i = 0; i < 32; ++i) {
    CHECK(Engine{many}.serve(count_from(1000 * i, 64)) == 0);
    CHECK(Engine{few}.serve(count_from(1000 * i, 64)) == 0);
  }
  CHECK(Engine{many}.serve(count_from(0, 64)) == 48);
  CHECK(Engine{few}.serve(count_from(0, 64)) == 0);
}

TEST(a_replay_computes_only_what_is_not_there) {
  const std::uint64_t all = 128 + 200 + 100 + 64 + 4 * 3, found = 128 + 48;
  for (const std::shared_ptr<KvMemory>& memory :
       {std::shared_ptr<KvMemory>(std::make_shared<VmmMemory>(vmm_options(512))),
        std::shared_ptr<KvMemory>(std::make_shared<BlockCacheMemory>(blocks(512)))}) {
    const ReplayFigures figures = replayed(conversation(), memory);
    CHECK(figures.completed == 4 && figures.looked_up_tokens == 128 + 200 + 100 + 64);
    CHECK(figures.found_tokens == found && figures.computed_tokens == all - found);
  }
}

TEST(a_replay_without_tokens_is_as_before) {
  std::vector<Request> requests = conversation();
  for (Request& each : requests) each.blocks.clear();
  const ReplayFigures figures = replayed(requests, std::make_shared<VmmMemory>(vmm_options(512)));
  CHECK(figures.looked_up_tokens == 0 && figures.found_tokens == 0);
  CHECK(figures.computed_tokens == 128 + 200 + 100 + 64 + 4 * 3);
}

TEST(what_is_being_computed_is_found) {
  // Two at once: the second is admitted when the first chunks of the first are under way.
  const auto request = [] { return Request{Nanoseconds{0}, 256, 2, {0, 64, 128, 192}, 64}; };
  const ReplayFigures figures =
      replayed({request(), request()}, std::make_shared<VmmMemory>(vmm_options(512)), 64);
  CHECK(figures.completed == 2 && figures.found_tokens >= 128);
}

TEST(who_was_preempted_finds_its_own_tokens_and_counts_once) {
  // Eight prompts fit, and their answers do not.
  std::vector<Request> requests;
  for (int i = 0; i < 8; ++i) requests.push_back({Nanoseconds{0}, 64, 200, {64 * i}, 64});
  for (const std::shared_ptr<KvMemory>& memory :
       {std::shared_ptr<KvMemory>(std::make_shared<VmmMemory>(vmm_options(48))),
        std::shared_ptr<KvMemory>(std::make_shared<BlockCacheMemory>(blocks(48)))}) {
    const ReplayFigures figures = replayed(requests, memory);
    CHECK(figures.completed == 8 && figures.preempted > 0);
    CHECK(figures.looked_up_tokens == 8 * 64 && figures.found_tokens == 0);
  }
}

TEST(what_follows_a_prefix_that_was_found_ages) {
  VmmMemory memory(vmm_options(32));
  const Engine engine{memory, 16};  // so little that the slots that are ready take few pages
  const TokenList first = count_from(0, 129), second = count_from(1000, 129);
  CHECK(engine.serve(first) == 0);
  CHECK(engine.serve(second) == 0);
  CHECK(engine.serve(TokenList(first.begin(), first.begin() + 33)) == 32);
  CHECK(engine.serve(count_from(2000, 129)) == 0);  // takes what only the first has
  CHECK(engine.serve(TokenList(first.begin(), first.begin() + 33)) == 32);
  CHECK(engine.serve(second) == 128);
}

TEST(a_short_prefix_does_not_cost_the_pages_that_are_ready) {
  VmmMemoryOptions options = vmm_options(512);
  options.first_tokens = {512};
  VmmMemory memory(options);
  const Engine engine{memory};
  CHECK(engine.serve(count_from(0, 65)) == 0);                    // it has more, so it is not adopted
  memory.sleep_until(memory.now() + Nanoseconds{1'000'000'000});  // the pager makes slots ready
  TokenList tokens = count_from(0, 32);
  tokens.resize(400, -1);
  const KvCounts before = memory.counts();
  CHECK(engine.serve(tokens) == 32);
  CHECK(memory.counts().pages_late == before.pages_late && memory.counts().stalled == before.stalled);
}
