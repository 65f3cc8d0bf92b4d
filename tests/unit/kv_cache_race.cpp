// Engines on threads of their own share one KvCache, with the pager's thread beside them. Made for
// ThreadSanitizer.
#include <atomic>
#include <cstring>
#include <random>
#include <thread>

#include "base/error.h"
#include "check.h"
#include "engine/kv_cache.h"
#include "engine/pager_thread.h"
#include "fixtures.h"

using namespace vmm;

namespace {

constexpr Bytes record{1'000};  // 65.5 tokens a page: they straddle
constexpr std::uint32_t slot_count = 7;

struct Sequence {
  std::uint32_t slot;
  unsigned char mark;
  std::uint64_t length = 0;
};

/// Serves sequences of its own on a stream of its own, with random lengths, content and ends.
class Engine {
 public:
  Engine(KvCache& cache, const Lease& lease, StreamHandle stream)
      : cache_(cache), lease_(lease), stream_(stream), random_(static_cast<unsigned>(stream.value)) {}

  void serve(int rounds) {
    for (int i = 0; i < rounds; ++i) {
      arrive();
      if (iterate()) {
        ++iterations;
        wrong += read();
        leave();
      }
    }
    while (!running_.empty()) finish();
    cache_.end(stream_);
  }

  int wrong = 0;
  int iterations = 0;  // that had memory

 private:
  unsigned pick(unsigned n) { return static_cast<unsigned>(random_() % n); }
  unsigned char* token(const Sequence& sequence, std::uint64_t i) const {
    return bytes_at(lease_, lease_.shape().extent_bytes * sequence.slot + record * i);
  }

  void arrive() {
    if (running_.size() == 3 || pick(2) == 0) return;
    try {
      const Tokens prompt{pick(200)};
      running_.push_back({cache_.open(prompt, prompt, stream_), static_cast<unsigned char>(1 + pick(255))});
    } catch (const InvalidArgument&) {  // the others have all slots
    }
  }

  bool iterate() {
    std::vector<std::int32_t> slots, lengths;
    const std::uint64_t most = cache_.slots().max_tokens().count;
    for (const Sequence& each : running_) {
      slots.push_back(static_cast<std::int32_t>(each.slot));
      lengths.push_back(static_cast<std::int32_t>(std::min(most, each.length + 1 + pick(60))));
    }
    try {
      cache_.step(slots, lengths, stream_);
    } catch (const OutOfPages&) {
      if (!running_.empty()) finish();
      cache_.end(stream_);
      return false;
    } catch (const InvalidArgument&) {
      throw;
    } catch (const Error&) {  // a slot that an open epoch of another engine may read
      cache_.end(stream_);
      std::this_thread::yield();
      return false;
    }
    for (std::size_t i = 0; i < running_.size(); ++i) {
      Sequence& each = running_[i];
      const auto to = static_cast<std::uint64_t>(lengths[i]);
      std::memset(token(each, each.length), each.mark, (record * (to - each.length)).count);
      each.length = to;
    }
    return true;
  }

  int read() const {
    int others = 0;
    for (const Sequence& each : running_)
      for (std::uint64_t i = 0; i < each.length; i += 7) others += *token(each, i) != each.mark;
    return others;
  }

  void leave() {
    if (running_.empty()) return;
    Sequence& one = running_[pick(static_cast<unsigned>(running_.size()))];
    switch (pick(6)) {
      case 0:
        one.length /= 2;
        return cache_.truncate(one.slot, {one.length}, {});
      case 1:
        return cache_.announce_tokens(one.slot,
                                      {std::min(one.length + 100, cache_.slots().max_tokens().count)});
      case 2:
        return finish();
      default:
        return;
    }
  }

  void finish() {
    cache_.close(running_.back().slot, stream_);
    running_.pop_back();
  }

  KvCache& cache_;
  const Lease& lease_;
  const StreamHandle stream_;
  std::mt19937 random_;
  std::vector<Sequence> running_;
};

}  // namespace

TEST(engines_share_a_cache) {
  TestPool test(2_MiB);
  std::vector<StreamHandle> streams;
  for (int i = 0; i < 3; ++i) streams.push_back(test.pool->streams().create());
  {
    PagerThread pager(test.pager);
    auto lease = test.reserve(512_KiB, slot_count);
    KvCache cache(test.pager, {{lease, 0, 1, record}}, slot_count, {});
    std::vector<Engine> engines;
    for (StreamHandle stream : streams) engines.emplace_back(cache, *lease, stream);
    std::atomic<bool> over{false};
    std::thread onlooker([&] {
      while (!over) {
        (void)cache.live();
        (void)cache.held();
        (void)cache.horizon();
        test.pool->check();
        test.pool->trim(64_KiB);
        std::this_thread::yield();
      }
    });
    std::vector<std::thread> threads;
    for (Engine& engine : engines) threads.emplace_back([&] { engine.serve(400); });
    for (std::thread& thread : threads) thread.join();
    over = true;
    onlooker.join();
    for (const Engine& engine : engines) {
      CHECK(engine.wrong == 0);
      CHECK(engine.iterations > 20);
    }
    CHECK(cache.open_slots() == 0);
  }
  test.settle();
  test.pool->trim(2_MiB, true);
  CHECK(test.pool->stats().created == Bytes{});
  test.pool->check();
  for (StreamHandle stream : streams) test.pool->streams().destroy(stream);
}
