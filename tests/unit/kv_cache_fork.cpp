// Sequences of a cache that begin with the tokens of another one.
#include <algorithm>
#include <array>
#include <cstring>
#include <memory>
#include <vector>

#include "base/error.h"
#include "check.h"
#include "engine/kv_cache.h"
#include "sharing_fixture.h"

using namespace vmm;

namespace {

constexpr std::uint32_t slot_count = 4;
constexpr Bytes small_record{1'000};  // 65.5 tokens a page

/// A cache of four slots with a page to write to at each length.
struct Cache : TestPool {
  explicit Cache(Bytes budget_bytes = 16_MiB, Tokens window = {})
      : TestPool(budget_bytes),
        lease(reserve(1_MiB, slot_count)),
        cache(std::make_unique<KvCache>(pager, std::vector<SlotPart>{{lease, 0, 1, small_record, window}},
                                        slot_count, KvCacheOptions{})) {}

  ~Cache() {
    cache.reset();
    lease.reset();
    finish_work();
    require_nothing_left(*this);
  }
  Cache(const Cache&) = delete;
  Cache& operator=(const Cache&) = delete;

  unsigned char* token(std::uint32_t slot, std::uint64_t at) const {
    return bytes_at(*lease, 1_MiB * slot + small_record * at);
  }
  /// A step writes the new tokens.
  void step(std::uint32_t slot, std::uint64_t length, int mark, StreamHandle stream = {}) {
    const std::int32_t slots[] = {static_cast<std::int32_t>(slot)};
    const std::int32_t lengths[] = {static_cast<std::int32_t>(length)};
    const std::uint64_t before = cache->length(slot).count;
    cache->step(slots, lengths, stream);
    write(slot, before, length, mark);
    pool->check();
  }
  void write(std::uint32_t slot, std::uint64_t from, std::uint64_t to, int mark) const {
    for (std::uint64_t at = from; at < to; ++at)
      std::memset(token(slot, at), static_cast<int>(at) + mark, small_record.count);
  }
  bool holds(std::uint32_t slot, std::uint64_t from, std::uint64_t to, int mark) const {
    for (std::uint64_t at = from; at < to; ++at) {
      const auto expected = static_cast<unsigned char>(static_cast<int>(at) + mark);
      const unsigned char* bytes = token(slot, at);
      if (!std::all_of(bytes, bytes + small_record.count,
                       [&](unsigned char byte) { return byte == expected; }))
        return false;
    }
    return true;
  }
  std::vector<std::uint32_t> fork(std::uint32_t slot, std::uint32_t count, StreamHandle stream = {}) {
    auto made = cache->fork(slot, count, stream);
    finish_work();
    pool->check();
    return made;
  }
  /// Waits for the work, too.
  void end(StreamHandle stream = {}) {
    cache->end(stream);
    finish_work();
    const Fence all = pool->epochs().fence();
    while (!pool->epochs().complete(all)) pool->epochs().poll();
  }
  void close(std::uint32_t slot, StreamHandle stream = {}) {
    cache->close(slot, stream);
    pool->check();
  }

  std::shared_ptr<Lease> lease;
  std::unique_ptr<KvCache> cache;
};

}  // namespace

TEST(a_cache_forks_as_often_as_it_has_slots) {
  Cache test;
  const std::uint32_t slot = test.cache->open({200}, {200}, {});
  test.step(slot, 200, 0);
  CHECK(test.fork(slot, 0).empty() && test.cache->open_slots() == 1);
  CHECK_THROWS(InvalidArgument, "n is 4; of max_sequences, which is 4, only 3", test.fork(slot, 4));
  CHECK(test.cache->open_slots() == 1 && test.pool->stats().saved == Bytes{});
  const auto children = test.fork(slot, 3);
  CHECK(children.size() == 3 && test.cache->open_slots() == 4);
  CHECK(test.pool->stats().saved == 64_KiB * 9 && test.pool->stats().kept == 64_KiB * 7);
  CHECK_THROWS(InvalidArgument, "only 0", test.fork(slot, 1));
  CHECK(test.fork(slot, 0).empty());
  for (const std::uint32_t child : children) {
    CHECK(test.cache->length(child) == Tokens{200} && test.holds(child, 0, 200, 0));
    test.step(child, 300, static_cast<int>(child));
  }
  CHECK(test.holds(slot, 0, 200, 0));
  for (const std::uint32_t child : children) {
    CHECK(test.holds(child, 0, 200, 0) && test.holds(child, 200, 300, static_cast<int>(child)));
    test.close(child);
    CHECK_THROWS(InvalidArgument, "expected one that is open", test.fork(child, 1));
  }
  CHECK_THROWS(InvalidArgument, "expected one that is open", test.fork(slot_count, 0));
  test.end();
  drain(test);
  CHECK(test.holds(slot, 0, 200, 0) && test.pool->stats().saved == Bytes{});
}

TEST(a_fork_forks) {
  Cache test;
  const std::uint32_t first = test.cache->open({}, {}, {});
  test.step(first, 150, 0);
  const std::uint32_t second = test.fork(first, 1)[0];
  test.step(second, 250, 1);
  const std::uint32_t third = test.fork(second, 1)[0];
  test.step(third, 260, 2);
  CHECK(test.pool->stats().saved == 64_KiB * (2 + 3));
  test.close(second);
  test.end();
  drain(test);
  CHECK(test.pool->stats().saved == 64_KiB * 2);
  CHECK(test.holds(first, 0, 150, 0) && test.holds(third, 0, 150, 0));
  CHECK(test.holds(third, 150, 250, 1) && test.holds(third, 250, 260, 2));
  test.close(first);
  test.end();
  drain(test);
  CHECK(test.holds(third, 0, 150, 0) && test.pool->stats().saved == Bytes{});
}

TEST(a_sequence_that_was_never_stepped_forks) {
  Cache test;
  const std::uint32_t slot = test.cache->open({100}, {100}, {});
  const std::uint32_t child = test.fork(slot, 1)[0];
  CHECK(test.cache->length(child) == Tokens{} && test.pool->stats().saved == Bytes{});
  test.step(slot, 70, 0);
  test.step(child, 80, 5);
  CHECK(test.holds(slot, 0, 70, 0) && test.holds(child, 0, 80, 5));
}

TEST(work_of_another_stream_must_be_over) {
  Cache test;
  const StreamHandle other = test.pool->streams().create();
  const std::uint32_t slot = test.cache->open({}, {}, other);
  test.step(slot, 100, 0, other);
  CHECK_THROWS(Error, "is not over", test.fork(slot, 1));
  test.faults->hold_events(true);
  test.cache->end(other);
  CHECK_THROWS(Error, "is not over", test.fork(slot, 1));
  CHECK(test.cache->open_slots() == 1 && test.pool->stats().saved == Bytes{});
  const std::uint32_t child = test.fork(slot, 1, other)[0];  // in order with the work there
  CHECK_THROWS(Error, "is not over", test.cache->truncate(child, {10}, {}));
  CHECK(test.cache->length(child) == Tokens{100});
  test.faults->hold_events(false);
  test.end(other);
  test.fork(slot, 1);
  test.cache->truncate(child, {10}, {});
  finish_work();
  test.pool->check();
  CHECK(test.holds(child, 0, 10, 0) && test.holds(slot, 0, 100, 0));
  test.pool->streams().destroy(other);
}

TEST(slots_that_another_stream_s_open_epoch_reads_are_not_waited_for) {
  Cache test;
  const StreamHandle other = test.pool->streams().create();
  const std::uint32_t slot = test.cache->open({}, {}, {});
  test.step(slot, 100, 0);
  std::array<std::uint32_t, 3> others;
  for (std::uint32_t& each : others) {
    each = test.cache->open({}, {}, other);
    test.step(each, 10, 7, other);
  }
  for (const std::uint32_t each : others) test.close(each, other);
  CHECK_THROWS(Error, "open still", test.fork(slot, 1));
  CHECK(test.cache->open_slots() == 1);
  test.cache->end(other);
  const auto children = test.fork(slot, 3);  // waits for it
  for (const std::uint32_t child : children) CHECK(test.holds(child, 0, 100, 0));
  for (const std::uint32_t child : children) test.close(child);
  CHECK(test.fork(slot, 3).size() == 3);  // what reads them is in this stream's own epoch, which ends for it
  test.pool->streams().destroy(other);
}

TEST(a_cache_without_memory_for_the_copies_forks_nothing) {
  Cache test(64_KiB * 6);
  const std::uint32_t slot = test.cache->open({}, {}, {});
  test.step(slot, 200, 0);  // three whole pages and one more
  CHECK_THROWS(OutOfPages, "", test.fork(slot, 3));
  test.pool->check();
  CHECK(test.cache->open_slots() == 1);
  test.end();
  drain(test);
  CHECK(test.pool->stats().saved == Bytes{} && test.holds(slot, 0, 200, 0));
  const auto children = test.fork(slot, 2);
  CHECK(test.pool->stats().kept == 64_KiB * 6 && test.pool->stats().saved == 64_KiB * 6);
  CHECK_THROWS(OutOfPages, "", test.cache->truncate(slot, {10}, {}));
  CHECK(test.cache->length(slot) == Tokens{200} && test.holds(slot, 0, 200, 0));
  test.close(children[0]);
  test.end();
  test.cache->truncate(slot, {10}, {});
  finish_work();
  test.pool->check();
  test.step(slot, 60, 8);
  CHECK(test.holds(slot, 0, 10, 0) && test.holds(slot, 10, 60, 8) && test.holds(children[1], 0, 200, 0));
}

TEST(what_a_window_has_left_behind_is_not_shared) {
  Cache test(16_MiB, {50});
  const std::uint32_t slot = test.cache->open({}, {}, {});
  for (const std::uint64_t length : {200, 270}) test.step(slot, length, 0);
  test.end();
  drain(test);
  CHECK(test.pool->stats().kept == 64_KiB * 3);  // pages 2 to 4; tokens 0 to 130 are no more
  const std::uint32_t child = test.fork(slot, 1)[0];
  CHECK(test.pool->stats().kept == 64_KiB * 4 && test.pool->stats().saved == 64_KiB * 2);
  CHECK(test.holds(child, 151, 270, 0));
  test.step(child, 330, 4);  // needs tokens from 221 on
  test.end();
  drain(test);
  CHECK(test.pool->stats().saved == 64_KiB && test.holds(slot, 151, 270, 0));
  CHECK(test.holds(child, 221, 270, 0) && test.holds(child, 270, 330, 4));
}

TEST(a_lost_driver_call_loses_no_tokens_of_a_fork) {
  for (std::int64_t n = 1; n < 80; ++n) {
    Cache test;
    const std::uint32_t slot = test.cache->open({}, {}, {});
    test.step(slot, 200, 0);
    std::vector<std::uint32_t> children;
    const bool failed = fails(test, n, [&] { children = test.cache->fork(slot, 2, {}); });
    const bool reached = !test.faults->last_failed().empty();
    test.faults->fail_at(0, 0, Fault::error);
    CHECK(test.cache->open_slots() == (failed ? 1 : 3) && test.holds(slot, 0, 200, 0));
    test.end();
    test.pool->reclaiming().drain_retired(true);
    test.pool->check();
    if (failed) {
      CHECK(test.pool->stats().saved == Bytes{} && test.pool->stats().kept == 64_KiB * 4);
      children = test.fork(slot, 2);
    }
    for (const std::uint32_t child : children) {
      CHECK(test.holds(child, 0, 200, 0));
      test.step(child, 240, static_cast<int>(child));
    }
    test.close(slot);
    for (const std::uint32_t child : children)
      CHECK(test.holds(child, 0, 200, 0) && test.holds(child, 200, 240, static_cast<int>(child)));
    if (!reached) return CHECK(n > 8);
  }
  CHECK(!"it fails for ever");
}

TEST(a_truncation_that_fails_changes_nothing) {
  for (std::int64_t n = 1; n < 80; ++n) {
    Cache test;
    const std::uint32_t slot = test.cache->open({}, {}, {});
    test.step(slot, 200, 0);
    const std::uint32_t child = test.fork(slot, 1)[0];
    const bool failed = fails(test, n, [&] { test.cache->truncate(child, {100}, {}); });
    const bool reached = !test.faults->last_failed().empty();
    test.faults->fail_at(0, 0, Fault::error);
    CHECK(test.holds(slot, 0, 200, 0));
    CHECK(test.cache->length(child) == Tokens{failed ? 200U : 100U});
    CHECK(test.holds(child, 0, failed ? 200 : 100, 0));
    if (failed) test.cache->truncate(child, {100}, {});
    finish_work();
    test.pool->reclaiming().drain_retired(true);
    test.pool->check();
    test.step(child, 220, 6);
    CHECK(test.holds(slot, 0, 200, 0) && test.holds(child, 0, 100, 0) && test.holds(child, 100, 220, 6));
    CHECK(test.pool->stats().saved == 64_KiB);
    if (!reached) return CHECK(n > 4);
  }
  CHECK(!"it fails for ever");
}

/// The driver fails for good in the middle of it.
TEST(a_truncation_that_cannot_be_ended_loses_at_most_that_sequence) {
  int lost = 0;
  for (std::int64_t n = 1; n < 80; ++n) {
    Cache test;
    const std::uint32_t slot = test.cache->open({}, {}, {});
    test.step(slot, 200, 0);
    const std::uint32_t child = test.fork(slot, 1)[0];
    const bool failed = fails(test, n, [&] { test.cache->truncate(child, {100}, {}); }, 1'000);
    test.faults->fail_at(0, 0, Fault::error);
    const std::uint64_t left = test.cache->length(child).count;
    CHECK(failed ? left == 200 || left == 0 : left == 100);
    lost += left == 0;
    test.pool->reclaiming().drain_retired(true);
    test.pool->check();
    CHECK(test.holds(slot, 0, 200, 0) && test.holds(child, 0, left, 0));
    test.step(child, 220, 6);
    test.step(slot, 240, 0);
    CHECK(test.holds(slot, 0, 240, 0) && test.holds(child, left, 220, 6));
    if (!failed) return CHECK(lost != 0);
  }
  CHECK(!"it fails for ever");
}
