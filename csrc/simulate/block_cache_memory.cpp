#include "simulate/block_cache_memory.h"

#include "base/error.h"

namespace vmm {
namespace {

/// Of a block, from that of all before it.
std::uint64_t hash_of(std::uint64_t before, std::span<const KvMemory::Token> tokens) {
  for (const KvMemory::Token token : tokens) {  // each step is splitmix64's
    before += 0x9e3779b97f4a7c15 + static_cast<std::uint32_t>(token);
    before = (before ^ (before >> 30)) * 0xbf58476d1ce4e5b9;
    before = (before ^ (before >> 27)) * 0x94d049bb133111eb;
    before ^= before >> 31;
  }
  return before;
}

}  // namespace

std::uint32_t BlockCacheMemory::open(Tokens, Tokens) {
  const auto found = std::ranges::find(sequences_, false, &Sequence::is_open);
  if (found == sequences_.end())
    throw InvariantViolation("the scheduler opened more sequences than there are places");
  *found = {.is_open = true, .blocks = {}};
  return static_cast<std::uint32_t>(found - sequences_.begin());
}

KvMemory::Opened BlockCacheMemory::open_prompt(std::span<const Token> prompt, Tokens announced) {
  const std::uint32_t place = open({prompt.size()}, announced);
  Sequence& sequence = sequences_[place];
  const std::size_t size = options_.block_tokens;
  while ((sequence.known + 1) * size < prompt.size()) {  // the last token's result is wanted
    const std::uint64_t hash = hash_of(sequence.hash, prompt.subspan(sequence.known * size, size));
    const auto found = findable_.find(hash);
    if (found == findable_.end()) break;
    use(found->second);
    sequence.blocks.push_back(found->second);
    sequence.hash = hash;
    ++sequence.known;
  }
  sequence.length = sequence.known * size;
  tokens_ += sequence.length;
  return {place, {sequence.length}};
}

void BlockCacheMemory::commit(std::uint32_t place, std::span<const Token> tokens) {
  Sequence& sequence = sequences_.at(place);
  for (const Token token : tokens) {
    sequence.rest.push_back(token);
    if (sequence.rest.size() != options_.block_tokens) continue;
    sequence.hash = hash_of(sequence.hash, sequence.rest);
    sequence.rest.clear();
    const BlockId block = sequence.blocks.at(sequence.known++);
    // Where several hold the same, the newest is found: it will be evicted last.
    blocks_[block].hash = sequence.hash;
    findable_[sequence.hash] = block;
  }
}

bool BlockCacheMemory::step(std::span<const std::int32_t> places, std::span<const std::int32_t> lengths) {
  std::uint64_t new_blocks = 0;
  for (std::size_t i = 0; i < places.size(); ++i)
    new_blocks += blocks_for(static_cast<std::uint64_t>(lengths[i])) -
                  sequences_.at(static_cast<std::size_t>(places[i])).blocks.size();
  if (new_blocks > unused_.size() + most_blocks_ - blocks_.size()) return false;
  for (std::size_t i = 0; i < places.size(); ++i) {
    Sequence& sequence = sequences_[static_cast<std::size_t>(places[i])];
    const auto length = static_cast<std::uint64_t>(lengths[i]);
    tokens_ += length - sequence.length;
    sequence.length = length;
    while (sequence.blocks.size() < blocks_for(length)) sequence.blocks.push_back(take_block());
  }
  return true;
}

void BlockCacheMemory::close(std::uint32_t place) {
  Sequence& sequence = sequences_.at(place);
  for (auto each = sequence.blocks.rbegin(); each != sequence.blocks.rend(); ++each) {
    Block& block = blocks_[*each];
    if (--block.users != 0) continue;
    // What nobody can find is taken first.
    block.unused = unused_.insert(findable(*each) ? unused_.end() : unused_.begin(), *each);
  }
  tokens_ -= sequence.length;
  sequence = {.blocks = {}};
}

bool BlockCacheMemory::findable(BlockId block) const {
  const auto found = findable_.find(blocks_[block].hash);
  return found != findable_.end() && found->second == block;
}

/// A block that was never used, or else the one that is to be taken first.
BlockCacheMemory::BlockId BlockCacheMemory::take_block() {
  if (blocks_.size() < most_blocks_) {
    blocks_.push_back({.users = 1});
    return static_cast<BlockId>(blocks_.size() - 1);
  }
  const BlockId block = unused_.front();
  use(block);
  if (findable(block)) findable_.erase(blocks_[block].hash);
  blocks_[block].hash = 0;
  return block;
}

void BlockCacheMemory::use(BlockId id) {
  Block& block = blocks_[id];
  if (block.users++ == 0) unused_.erase(block.unused);
}

KvUsage BlockCacheMemory::usage() const {
  const std::uint64_t held = blocks_.size() - unused_.size();
  return {options_.record_bytes * tokens_, block_bytes_ * held, block_bytes_ * blocks_.size(),
          block_bytes_ * unused_.size()};
}

}  // namespace vmm
