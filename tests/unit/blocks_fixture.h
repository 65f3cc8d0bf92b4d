// A range over a test's pool, and blocks in it.
#pragma once

#include <memory>
#include <utility>
#include <vector>

#include "engine/blocks.h"
#include "fixtures.h"

namespace vmm {

inline constexpr Bytes page = 64_KiB;
using Ids = std::vector<std::int32_t>;

struct RangeTest : TestPool {
  RangeTest(Bytes budget_bytes, Bytes size) : TestPool(budget_bytes), range(make(size)) {}

  std::shared_ptr<Range> make(Bytes size) {
    return std::make_shared<Range>(pager, reserve(size, 1, 0, true));
  }
  std::shared_ptr<Blocks> blocks(std::vector<Bytes> starts, Bytes stride, std::uint64_t count) {
    return Blocks::make(range, {std::move(starts), stride, count});
  }
  /// Pages from `first` on that are mapped, up to the first that is not.
  std::uint64_t mapped_from(std::uint32_t first) const {
    const std::uint64_t all = range->lease()->size() / page;
    return Pool::Needs(*pool).resident(range->reservation(), {{first}, {all - first}}).count;
  }
  Bytes mapped() const { return pool->mapped(range->reservation()); }
  Bytes kept() const { return pool->stats().kept; }
  Fence fence() { return pool->epochs().fence(); }

  std::shared_ptr<Range> range;
};

inline std::vector<std::uint8_t> flags(std::initializer_list<int> all) { return {all.begin(), all.end()}; }

}  // namespace vmm
