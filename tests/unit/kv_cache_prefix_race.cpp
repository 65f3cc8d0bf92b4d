// Threads open sequences with prompts that begin alike, commit what they have computed, and close, all on one
// cache, with the pager's thread and an onlooker beside them. Made for ThreadSanitizer. And memory that is
// taken at the very moment when a sequence ends.
#include <atomic>
#include <chrono>
#include <functional>
#include <random>
#include <thread>
#include <utility>

#include "check.h"
#include "engine/pager_thread.h"
#include "prefix_fixture.h"

using namespace vmm;

namespace {

/// Serves prompts, each of which begins as one of four do.
class Client {
 public:
  Client(PrefixCache& test, StreamHandle stream, unsigned seed)
      : test_(test), stream_(stream), random_(seed) {}

  void serve(int rounds) {
    for (int i = 0; i < rounds; ++i) {
      if (running_.size() < 3) arrive();
      for (Sequence& each : running_) wrong += !test_.intact(each);
      if (!running_.empty() && pick(2) == 0) leave();
    }
    while (!running_.empty()) leave();
    test_.cache->end(stream_);
  }

  int wrong = 0;
  std::uint64_t found = 0, served = 0;

 private:
  unsigned pick(unsigned n) { return static_cast<unsigned>(random_() % n); }
  TokenList draw() {
    const TokenList head = first_of(tokens_from(1'000 * static_cast<int>(pick(4)), 200), 20 + pick(180));
    return joined(head, tokens_from(100'000 + static_cast<int>(random_() % 100'000), 1 + pick(40)));
  }

  void arrive() {
    const TokenList tokens = draw();
    Sequence made;
    try {
      const KvCache::Opened opened = test_.cache->open_prompt({tokens, ""}, {}, stream_);
      made = {opened.slot, first_of(tokens, opened.cached.count), opened.cached.count};
    } catch (const InvalidArgument&) {  // the others have all slots
      return;
    }
    finish_work();
    if (stream_.value != 0) test_.pool->streams().synchronize(stream_);  // what was copied is there
    wrong += !test_.intact(made);
    const TokenList rest(tokens.begin() + static_cast<std::ptrdiff_t>(made.cached), tokens.end());
    if (!compute(made, rest)) return test_.cache->close(made.slot, stream_);
    test_.cache->end(stream_);  // others need not wait for this
    test_.cache->commit(made.slot, rest);
    found += made.cached;
    ++served;
    running_.push_back(std::move(made));
  }

  bool compute(Sequence& sequence, const TokenList& more) {
    const std::uint64_t before = sequence.tokens.size();
    const std::int32_t slots[] = {static_cast<std::int32_t>(sequence.slot)};
    const std::int32_t lengths[] = {static_cast<std::int32_t>(before + more.size())};
    try {
      test_.cache->step(slots, lengths, stream_);
    } catch (const InvalidArgument&) {
      throw;
    } catch (const Error&) {  // no memory, or a slot that an open epoch of another stream may read
      test_.cache->end(stream_);
      std::this_thread::sleep_for(std::chrono::microseconds(200));
      return false;
    }
    sequence.tokens = joined(std::move(sequence.tokens), more);
    test_.write(sequence, before, sequence.tokens.size());
    return true;
  }

  void leave() {
    const std::size_t which = pick(static_cast<unsigned>(running_.size()));
    test_.cache->close(running_[which].slot, stream_);
    running_.erase(running_.begin() + static_cast<std::ptrdiff_t>(which));
  }

  PrefixCache& test_;
  const StreamHandle stream_;
  std::mt19937 random_;
  std::vector<Sequence> running_;
};

}  // namespace

TEST(threads_begin_with_each_others_tokens) {
  PrefixCache test({.budget = 4_MiB, .record = Bytes{1'000}, .slots = 12});
  std::vector<StreamHandle> streams{{}, {}};  // two share the default one
  for (int i = 0; i < 2; ++i) streams.push_back(test.pool->streams().create());
  {
    PagerThread pager(test.pager);
    std::vector<Client> clients;
    for (std::size_t i = 0; i < streams.size(); ++i)
      clients.emplace_back(test, streams[i], static_cast<unsigned>(i));
    std::atomic<bool> over{false};
    std::thread onlooker([&] {
      while (!over) {
        (void)test.stats();
        (void)test.cache->live();
        test.pool->check();
        test.pool->trim(64_KiB);
        std::this_thread::yield();
      }
    });
    std::vector<std::thread> threads;
    for (Client& client : clients) threads.emplace_back([&] { client.serve(400); });
    for (std::thread& thread : threads) thread.join();
    over = true;
    onlooker.join();
    std::uint64_t found = 0;
    for (const Client& client : clients) {
      CHECK(client.wrong == 0);
      CHECK(client.served > 20);
      found += client.found;
    }
    CHECK(found > 1'000 && test.stats().found.count >= found);
    CHECK(test.cache->open_slots() == 0);
  }
  const PrefixStats stats = test.stats();
  CHECK(stats.adopted > 0 && stats.aliased + stats.copied > 0);
  test.end();
  for (std::size_t i = 2; i < streams.size(); ++i) test.pool->streams().destroy(streams[i]);
}

TEST(memory_taken_while_a_sequence_ends_is_that_of_those_which_ended_before) {
  PrefixCache test({.budget = 4_MiB, .slots = 8});
  std::atomic<int> asked{0}, answered{0};
  std::thread taker([&] {
    for (int round = 0; round != -1;) {
      const int next = asked;
      if (next == round) continue;
      round = next;
      if (round > 0) test.pool->trim(64_KiB);
      answered = round;
    }
  });
  int wrong = 0, lost = 0;
  for (int round = 1; round <= 2'000; ++round) {
    const Sequence one = test.serve(tokens_from(1'000 * round, 256));
    test.cache->end({});
    asked = round;
    for (int i = 0; i < 16 * (round % 64); ++i) std::atomic_signal_fence(std::memory_order_seq_cst);
    test.cache->close(one.slot, {});
    while (answered != round) std::this_thread::yield();
    const Slots::Needs needs(test.cache->slots());
    Tokens others{};
    for (std::uint32_t slot = 0; slot < test.options.slots; ++slot)
      if (slot != one.slot) others += needs.holds(slot, {256});
    lost += others.count % 256 != 0;
    wrong += needs.holds(one.slot, {256}).count != 256 && others.count != 0;
  }
  asked = -1;
  taker.join();
  CHECK(lost > 100);
  CHECK(wrong == 0);
}

TEST(what_is_mapped_ahead_for_a_sequence_that_ends_meanwhile_is_needed_by_nobody) {
  std::function<void()> meanwhile;
  PrefixCache test({.before_map = [&](std::size_t) {
    if (const auto now = std::exchange(meanwhile, {})) std::thread(now).join();
  }});
  const Sequence one = test.serve(tokens_from(0, 64));
  test.cache->announce_tokens(one.slot, {256});
  meanwhile = [&] { test.close(one); };
  while (test.pager->poll(test.clock->now()).now) {
  }
  CHECK(!meanwhile);
  int resident = 0;
  for (std::uint32_t page = 0; page < 16; ++page) {
    const VirtualPage& each = test.leases[0]->reservation().table[{16 * one.slot + page}];
    resident += each.state == VirtualState::resident;
    CHECK(each.need == Need::none);
  }
  CHECK(resident > 1);
  test.end();
}

/// What the pager maps for a slot may come so late that another sequence's tokens have been there, and gone.
TEST(what_is_mapped_too_late_is_not_taken_for_tokens) {
  std::function<void()> meanwhile;
  PrefixCache test({.budget = 64_KiB * 8, .before_unmap = [&](std::size_t) {
                      if (const auto now = std::exchange(meanwhile, {})) std::thread(now).join();
                    }});
  const TokenList own = tokens_from(0, 128), longer = joined(own, tokens_from(128, 128));
  Sequence served = test.open(longer);
  test.leave_pages(64 * 6, 1);
  test.cache->announce_tokens(served.slot, {longer.size()});
  meanwhile = [&] {  // the pager makes room for what was announced
    test.step(served, own);
    test.commit(served, 0, own.size());
    test.close(served);
    retire(*test.leases[0], 16 * served.slot, 2, {});  // somebody takes its memory
    drain(test);
  };
  test.settle();
  CHECK(!meanwhile);
  CHECK(state_of(*test.leases[0], 16 * served.slot) == VirtualState::resident);
  CHECK(test.open(longer).cached == 0);
}
