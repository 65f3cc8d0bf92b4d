// Threads open sequences with prompts that begin alike, commit what they have computed, and close, all on one
// cache, with the pager's thread and an onlooker beside them. Made for ThreadSanitizer.
#include <atomic>
#include <chrono>
#include <random>
#include <thread>

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
