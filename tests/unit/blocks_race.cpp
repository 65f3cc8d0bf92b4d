// Threads that use blocks of one range, whose pages they share.
#include <atomic>
#include <cstring>
#include <random>
#include <thread>

#include "base/error.h"
#include "blocks_fixture.h"
#include "check.h"
#include "engine/pager_thread.h"

using namespace vmm;

namespace {

constexpr Bytes raced_stride{20'000};  // 3.3 in a page
constexpr std::uint64_t raced_blocks = 64;

/// Keeps, writes, checks and drops its own blocks, each fourth; their neighbours are other threads'.
void use_blocks(RangeTest& test, Blocks& blocks, std::int32_t first, std::atomic<int>& wrong) {
  std::mt19937 random(static_cast<unsigned>(first));
  auto pick = [&](unsigned n) { return static_cast<std::int32_t>(random() % n); };
  for (int round = 0; round < 300; ++round) {
    Ids ids;
    for (int i = 0; i < 1 + pick(4); ++i) ids.push_back(first + 4 * pick(raced_blocks / 4));
    if (pick(2) == 0) blocks.announce(ids);
    try {
      if (pick(3) == 0)
        ids = blocks.keep_ready(ids);
      else
        blocks.keep(ids);
    } catch (const OutOfPages&) {
      ids.clear();
    }
    const auto mark = static_cast<unsigned char>(1 + pick(255));
    for (std::int32_t id : ids)
      for (Bytes start : {Bytes{}, 2_MiB})
        std::memset(bytes_at(*test.range->lease(), start + raced_stride * static_cast<std::uint64_t>(id)),
                    mark, raced_stride.count);
    for (std::uint8_t flag : blocks.ready(ids)) wrong += flag == 0;
    for (std::int32_t id : ids)
      for (Bytes at : {Bytes{}, raced_stride - Bytes{1}})
        wrong += *bytes_at(*test.range->lease(), raced_stride * static_cast<std::uint64_t>(id) + at) != mark;
    blocks.drop(ids, test.fence(), pick(3) == 0);
  }
}

}  // namespace

TEST(threads_use_neighbouring_blocks_while_memory_is_short) {
  RangeTest test(768_KiB, 4_MiB);  // 12 pages
  auto blocks = test.blocks({Bytes{}, 2_MiB}, raced_stride, raced_blocks);
  std::atomic<int> wrong = 0;
  {
    PagerThread pager(test.pager);
    std::vector<std::thread> threads;
    for (std::int32_t first = 0; first < 4; ++first)
      threads.emplace_back([&, first] { use_blocks(test, *blocks, first, wrong); });
    for (std::thread& thread : threads) thread.join();
  }
  CHECK(wrong == 0);
  CHECK(blocks->kept() == 0);
  Ids all;
  for (std::int32_t id = 0; id < static_cast<std::int32_t>(raced_blocks); ++id) all.push_back(id);
  blocks->drop(all, {});
  CHECK(test.kept() == Bytes{});
  test.settle();
  test.pool->trim(8_MiB, false, Need::announced);
  CHECK(test.mapped() == Bytes{});
  test.pool->check();
}
