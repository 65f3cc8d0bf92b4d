// The bookkeeping of other allocators, as far as a scheduler notices it: how many units of memory a sequence
// takes, and what it costs the caller to map them.
#pragma once

#include <algorithm>
#include <vector>

#include "simulate/kv_memory.h"

namespace vmm {

struct CountingOptions {
  Bytes capacity;
  std::uint32_t places = 256;
  Bytes record_bytes;         // of a token
  Tokens tokens_per_unit;     // memory is handed out in units: a whole sequence, a block of tokens, …
  Bytes unit_bytes;           // more than its tokens need where the allocator wastes some
  Nanoseconds map_unit{};     // it takes the caller to map one; 0 where everything is mapped from the start
  Nanoseconds create_unit{};  // it takes, besides, to create its physical pages, which are then kept
};

/// Freeing costs nothing here, which flatters the allocators that are compared with ours.
class CountingMemory final : public KvMemory {
 public:
  explicit CountingMemory(const CountingOptions& options)
      : options_(options), lengths_(options.places, free_place) {}

  Nanoseconds now() const override { return now_; }
  void sleep_until(Nanoseconds then) override { now_ = std::max(now_, then); }
  Bytes capacity() const override { return options_.capacity; }
  std::uint32_t places() const override { return options_.places; }
  Bytes bytes_for(Tokens tokens) const override { return options_.unit_bytes * units_for(tokens.count); }

  std::uint32_t open(Tokens prompt, Tokens announced) override;
  void announce(std::uint32_t, Tokens) override {}
  bool step(std::span<const std::int32_t> places, std::span<const std::int32_t> lengths) override;
  Nanoseconds run(Nanoseconds takes) override { return now_ + takes; }
  void close(std::uint32_t place) override;

  KvUsage usage() const override;
  KvCounts counts() const override { return counts_; }

 private:
  static constexpr std::int64_t free_place = -1;

  std::uint64_t units_for(std::uint64_t tokens) const {
    return (tokens + options_.tokens_per_unit.count - 1) / options_.tokens_per_unit.count;
  }

  const CountingOptions options_;
  std::vector<std::int64_t> lengths_;  // by place; free_place
  std::uint64_t tokens_ = 0, units_ = 0, most_units_ = 0;
  KvCounts counts_;
  Nanoseconds now_{};
};

}  // namespace vmm
