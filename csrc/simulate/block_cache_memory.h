// The bookkeeping of a paged allocator that shares prefixes, as vLLM's does: blocks of tokens that are found
// by what they hold, and evicted when they were used longest ago.
#pragma once

#include <algorithm>
#include <list>
#include <unordered_map>
#include <vector>

#include "simulate/kv_memory.h"

namespace vmm {

struct BlockCacheOptions {
  Bytes capacity;
  std::uint32_t places = 256;
  Bytes record_bytes;  // of a token
  std::uint32_t block_tokens = 16;
};

/// Blocks of open sequences stay. Those of closed ones go least recently used first, and of one sequence the
/// last first, because a block is of use only behind all before it. Mapping, block tables and slower kernels
/// cost nothing here, which flatters it.
///
/// A block is known by a hash of 64 bits of its tokens and all before them. Of ten million blocks two have
/// the same with a chance of 1 in 400,000; then some request would seem to find more than there is.
class BlockCacheMemory final : public KvMemory {
 public:
  explicit BlockCacheMemory(const BlockCacheOptions& options)
      : options_(options),
        block_bytes_(options.record_bytes * options.block_tokens),
        most_blocks_(options.capacity / block_bytes_),
        sequences_(options.places) {}

  Nanoseconds now() const override { return now_; }
  void sleep_until(Nanoseconds then) override { now_ = std::max(now_, then); }
  Bytes capacity() const override { return options_.capacity; }
  std::uint32_t places() const override { return options_.places; }
  Bytes bytes_for(Tokens tokens) const override { return block_bytes_ * blocks_for(tokens.count); }

  std::uint32_t open(Tokens prompt, Tokens announced) override;
  Opened open_prompt(std::span<const Token> prompt, Tokens announced) override;
  void commit(std::uint32_t place, std::span<const Token> tokens) override;
  void announce(std::uint32_t, Tokens) override {}
  bool step(std::span<const std::int32_t> places, std::span<const std::int32_t> lengths) override;
  Nanoseconds run(Nanoseconds takes) override { return now_ + takes; }
  void close(std::uint32_t place) override;

  KvUsage usage() const override;
  KvCounts counts() const override { return {}; }

 private:
  using BlockId = std::uint32_t;
  struct Block {
    std::uint64_t hash = 0;  // where it is findable_
    std::uint32_t users = 0;
    std::list<BlockId>::iterator unused = {};  // its place in unused_, without users
  };
  struct Sequence {
    bool is_open = false;
    std::uint64_t length = 0;
    std::vector<BlockId> blocks;
    std::uint64_t hash = 0;     // of the blocks whose tokens are known
    std::size_t known = 0;      // how many these are
    std::vector<Token> rest{};  // the known tokens after them
  };

  std::uint64_t blocks_for(std::uint64_t tokens) const {
    return (tokens + options_.block_tokens - 1) / options_.block_tokens;
  }
  bool findable(BlockId block) const;
  BlockId take_block();
  void use(BlockId block);

  const BlockCacheOptions options_;
  const Bytes block_bytes_;
  const std::uint64_t most_blocks_;
  std::vector<Sequence> sequences_;                      // by place
  std::vector<Block> blocks_;                            // all that there has been a need for
  std::list<BlockId> unused_;                            // the one to be taken first in front
  std::unordered_map<std::uint64_t, BlockId> findable_;  // by hash
  std::uint64_t tokens_ = 0;
  Nanoseconds now_{};
};

}  // namespace vmm
