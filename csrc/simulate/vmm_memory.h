// Our allocator: the real KvCache, pool and pager, over the simulation driver.
#pragma once

#include <memory>
#include <vector>

#include "engine/kv_cache.h"
#include "simulate/kv_memory.h"
#include "simulate/world.h"

namespace vmm {

struct VmmMemoryOptions {
  WorldOptions world{};  // whose budget is the capacity
  // The cache has a few slots more than this, which can be made ready while all places are taken.
  std::uint32_t places = 256;
  // And so many more, in which sequences that have ended may lie, for others to begin with their tokens. They
  // cost addresses and bookkeeping; memory is theirs only where nobody needs it more.
  std::uint32_t cached = 0;
  Tokens max_tokens;
  Tokens first_tokens;  // the most that a sequence's first step computes; 0: the cache learns it
  Bytes warm;           // so much memory is created before the first request
  Bytes page_bytes = 2_MiB;
  std::vector<Bytes> records;  // the size of a token's record, for each extent of a sequence
};

class VmmMemory final : public KvMemory {
 public:
  explicit VmmMemory(VmmMemoryOptions options);
  ~VmmMemory() override;

  Nanoseconds now() const override { return world_.now(); }
  void sleep_until(Nanoseconds then) override { world_.sleep_until(then); }
  Bytes capacity() const override;
  std::uint32_t places() const override { return options_.places; }
  Bytes bytes_for(Tokens tokens) const override;

  std::uint32_t open(Tokens prompt, Tokens announced) override;
  Opened open_prompt(std::span<const Token> prompt, Tokens announced) override;
  void commit(std::uint32_t place, std::span<const Token> tokens) override { cache_->commit(place, tokens); }
  void announce(std::uint32_t place, Tokens to) override { cache_->announce_tokens(place, to); }
  bool step(std::span<const std::int32_t> places, std::span<const std::int32_t> lengths) override;
  Nanoseconds run(Nanoseconds takes) override;
  void close(std::uint32_t place) override;

  KvUsage usage() const override;
  KvCounts counts() const override;
  PrefixStats prefixes() const { return cache_->prefix_stats(); }

 private:
  MemoryRange tokens(const SlotPart& part, std::uint64_t place, std::uint64_t from, std::uint64_t to) const;

  const VmmMemoryOptions options_;
  World world_;
  std::vector<SlotPart> parts_;  // of one extent each, as KVCache on a GPU has them
  std::unique_ptr<KvCache> cache_;
  StreamHandle stream_;
  std::vector<std::uint64_t> lengths_;  // by place
  std::vector<MemoryRange> uses_;       // what the iteration that was stepped last reads and writes
  std::vector<MemoryRange> new_pages_;  // scratch of step()
  KvCounts counts_;
};

}  // namespace vmm
