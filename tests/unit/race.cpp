// Threads on one pool do every operation beside every other, with the pager's thread among them. Made for
// ThreadSanitizer.
#include <atomic>
#include <cstring>
#include <random>
#include <thread>

#include "base/error.h"
#include "check.h"
#include "engine/pager_thread.h"
#include "engine/rows.h"
#include "fixtures.h"

using namespace vmm;

namespace {

constexpr Bytes record{256};

/// Opens, grows, writes, checks, truncates and drops caches of its own until it has done `rounds`.
void use_caches(TestPool& test, unsigned seed, int rounds, std::atomic<int>& wrong) {
  std::mt19937 random(seed);
  auto pick = [&](unsigned n) { return random() % n; };
  for (int i = 0; i < rounds; ++i) {
    auto lease = test.reserve(512_KiB * (1 + pick(2)), 1 + pick(3), pick(2));
    auto growth = test.grow(lease, record);
    const auto mark = static_cast<unsigned char>(1 + pick(255));
    std::uint64_t length = 0;
    for (int step = 0; step < 6; ++step) {
      const std::uint64_t to = std::min(growth->max_tokens().count, length + 1 + pick(900));
      try {
        growth->advance({to});
      } catch (const OutOfPages&) {
        break;
      }
      for (std::uint64_t e = 0; e < lease->extents(); ++e)
        std::memset(bytes_at(*lease, lease->shape().extent_bytes * e + record * length), mark,
                    (record * (to - length)).count);
      length = to;
      for (std::uint64_t e = 0; e < lease->extents(); ++e)
        for (std::uint64_t t = 0; t < length; t += 16)
          wrong += *bytes_at(*lease, lease->shape().extent_bytes * e + record * t) != mark;
      if (pick(4) == 0) {
        length /= 2;
        growth->truncate({length});
      }
    }
  }
}

/// Touches, writes, checks and releases one row after another of tensors of its own and of a shared one.
void use_rows(TestPool& test, Rows& shared, std::uint64_t row, int rounds, std::atomic<int>& wrong) {
  std::mt19937 random(static_cast<unsigned>(row));
  auto pick = [&](unsigned n) { return random() % n; };
  auto region = [](const Rows& rows, std::uint64_t r, std::uint64_t from, std::uint64_t to) {
    const RowsShape& shape = rows.shape();
    const Bytes offset = shape.record_bytes * (shape.tokens.count * r + from);
    return Region{offset, shape.record_bytes, {{to - from, shape.record_bytes}}};
  };
  auto write_and_check = [&](Rows& rows, std::uint64_t r, std::uint64_t from, std::uint64_t to) {
    const Region bytes = region(rows, r, from, to);
    const auto pin = rows.pin(rows.spans_of(bytes));
    const auto mark = static_cast<unsigned char>(1 + pick(255));
    std::memset(bytes_at(rows.lease(), bytes.offset), mark, (rows.shape().record_bytes * (to - from)).count);
    wrong += *bytes_at(rows.lease(), bytes.offset) != mark;
  };
  for (int i = 0; i < rounds; ++i) {
    const std::uint64_t from = pick(900);
    try {
      write_and_check(shared, row, from, from + 1 + pick(100));
      auto own = Rows::make(test.pager, test.reserve(1_MiB, 1, 0, true), {4, {1000}, record});
      for (std::uint64_t r = 0; r < 4; ++r) write_and_check(*own, r, 0, 1 + pick(1000));
      own->release({pick(500)}, {500 + pick(500)});
      write_and_check(*own, pick(4), 300, 700);
      (void)own->in_use();
    } catch (const OutOfPages&) {
    }
  }
}

}  // namespace

TEST(threads_share_a_tensor) {
  TestPool test(6_MiB);
  std::atomic<int> wrong{0};
  {
    PagerThread pager(test.pager);
    auto shared = Rows::make(test.pager, test.reserve(1_MiB, 1, 0, true), {4, {1000}, record});
    std::vector<std::thread> threads;
    for (std::uint64_t row = 0; row < 4; ++row)
      threads.emplace_back([&, row] { use_rows(test, *shared, row, 100, wrong); });
    threads.emplace_back([&] {
      for (int i = 0; i < 100; ++i) {
        shared->release({0}, {1000});  // what the others hold pinned stays
        test.pool->check();
        std::this_thread::yield();
      }
    });
    for (std::thread& thread : threads) thread.join();
  }
  CHECK(wrong == 0);
  test.settle();
  test.pool->check();
  CHECK(test.pool->stats().reservations_leased == 0);
}

TEST(threads_append_to_one_tensor) {
  TestPool test(6_MiB);
  PagerThread pager(test.pager);
  auto rows = Rows::make(test.pager, test.reserve(1_MiB, 1, 0, true), {2, {2000}, record});
  std::mutex appending;  // as KVTensor.append holds its own
  std::uint64_t length = 0;
  std::vector<std::thread> threads;
  for (int n = 0; n < 4; ++n)
    threads.emplace_back([&] {
      for (;;) {
        std::lock_guard lock(appending);
        if (length == 2000) return;
        const Bytes row = record * 2000;
        const Region token{record * length, record, {{2, row}}};
        rows->touch(rows->spans_of(token));
        for (std::uint64_t r = 0; r < 2; ++r)
          std::memset(bytes_at(rows->lease(), row * r + token.offset), static_cast<int>(1 + length % 200),
                      record.count);
        ++length;
      }
    });
  for (std::thread& thread : threads) thread.join();
  int wrong = 0;
  for (std::uint64_t i = 0; i < 4000; ++i)
    wrong += *bytes_at(rows->lease(), record * i) != 1 + i % 2000 % 200;
  CHECK(wrong == 0);
  CHECK(rows->mark(0) == Tokens{2000} && rows->mark(1) == Tokens{2000});
  test.pool->check();
}

TEST(copies_on_streams_beside_everything) {
  TestPool test(8_MiB);
  PagerThread pager(test.pager);
  std::vector<std::thread> threads;
  for (int n = 0; n < 2; ++n)
    threads.emplace_back([&] {
      const StreamHandle stream = test.pool->streams().create();
      for (int i = 0; i < 40; ++i) {
        auto rows = Rows::make(test.pager, test.reserve(2_MiB, 1, 0, true), {2, {4096}, record});
        rows->reserve({4096});
        test.pool->streams().copy(rows->lease().base(), rows->lease().base() + 1_MiB, 1_MiB, stream);
      }  // released while the copy is under way
      test.pool->streams().synchronize(stream);
      test.pool->streams().destroy(stream);
    });
  for (std::thread& thread : threads) thread.join();
  CHECK(test.pool->counters().driver_failures.get() == 0);
  test.pool->check();
}

TEST(threads_share_a_pool) {
  TestPool test(6_MiB);  // short: reclaiming happens all the time
  std::atomic<int> wrong{0};
  {
    PagerThread pager(test.pager);
    std::vector<std::thread> threads;
    for (unsigned seed = 0; seed < 3; ++seed)
      threads.emplace_back([&, seed] { use_caches(test, seed, 60, wrong); });
    threads.emplace_back([&] {
      for (int i = 0; i < 60; ++i) {
        test.pool->trim(256_KiB);
        test.pool->stats();
        test.pool->check();
        test.budget->set_limit(i % 2 ? 6_MiB : 5_MiB);
        std::this_thread::yield();
      }
      test.budget->set_limit(6_MiB);
    });
    for (std::thread& thread : threads) thread.join();
  }
  CHECK(wrong == 0);
  test.pool->check();
  test.pool->close();
  CHECK(test.budget->taken() == Bytes{});
}

TEST(a_budget_that_is_just_enough_is_enough) {
  TestPool test(3_MiB);
  PagerThread pager(test.pager);
  for (std::uint64_t i = 0; i < 200; ++i) {
    // Of another shape than the last, which is idle now: every page is unmapped, released or remapped, by
    // this thread and the pager side by side, and none of that may look like a lack of memory.
    std::vector<std::shared_ptr<Growth>> layers;
    for (int n = 0; n < 3; ++n) layers.push_back(test.grow(test.reserve(64_KiB * (4 + i % 5), 4), record));
    admit(layers, {4 * 256});
    for (const auto& layer : layers) layer->advance({4 * 256});
  }
  test.pool->check();
}

TEST(driver_failures_beside_other_threads) {
  TestPool test(8_MiB);
  std::atomic<int> wrong{0};
  std::atomic<bool> stop{false};
  {
    PagerThread pager(test.pager);
    std::vector<std::thread> threads;
    for (unsigned seed = 10; seed < 12; ++seed)
      threads.emplace_back([&, seed] {
        for (int i = 0; i < 60; ++i) {
          try {
            use_caches(test, seed + 100 * static_cast<unsigned>(i), 1, wrong);
          } catch (const DriverError&) {  // injected
          }
        }
      });
    std::thread saboteur([&] {
      while (!stop) {
        test.faults->fail_at(5, 2, Fault::error);
        std::this_thread::sleep_for(std::chrono::microseconds(300));
      }
    });
    for (std::thread& thread : threads) thread.join();
    stop = true;
    saboteur.join();
    test.faults->fail_at(0, 0, Fault::error);
  }
  CHECK(wrong == 0);
  test.settle();
  test.pool->check();
  test.pool->close();
  CHECK(test.budget->taken() == Bytes{});
}

TEST(two_threads_want_the_same_pages) {
  TestPool test(16_MiB);
  for (int i = 0; i < 50; ++i) {
    auto lease = test.reserve(2_MiB);
    std::thread other([&] { map(*lease, 0, 24); });
    map(*lease, 8, 24);
    other.join();
    CHECK(test.pool->mapped(lease->reservation()) == 2_MiB);
    test.pool->check();
    retire(*lease, 0, 32);
    map(*lease, 0, 32);  // waits for the retiring
    lease.reset();
  }
}
