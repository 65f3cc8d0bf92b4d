#include "simulate/eviction_replay.h"

#include <algorithm>
#include <optional>
#include <ranges>
#include <unordered_map>

#include "policy/eviction/eviction_policies.h"
#include "policy/eviction/priority.h"
#include "simulate/belady.h"

namespace vmm {
namespace {

/// Tells what only the whole stream up to now can: which blocks were there before, and which belong to the
/// prompt of a system. A trace does not say the latter. They are taken to be the blocks up to where prompts
/// part, of which each goes on with a full block of its own; a turn of one conversation that goes on from
/// another also parts from it, but in the block that the earlier one did not fill.
class SeenBlocks {
 public:
  std::uint32_t new_in(const BlockRequest& request) const {
    return static_cast<std::uint32_t>(
        std::ranges::count_if(request.blocks, [&](std::uint64_t block) { return !blocks_.contains(block); }));
  }
  int priority(std::uint64_t block) const {
    const auto found = blocks_.find(block);
    if (found == blocks_.end()) return Priority::recent;
    return found->second.shared ? Priority::system_prompt : Priority::old_context;
  }
  /// The block before it in the prompt that had it first: whatever a trace says, these make a tree.
  std::optional<UnitId> parent(std::uint64_t block) const { return blocks_.at(block).parent; }

  void add(const BlockRequest& request) {
    const std::size_t full = request.blocks.size() - request.partial;
    std::size_t shared = 0;
    for (std::size_t i = 0; i < request.blocks.size(); ++i) {
      const auto [found, is_new] = blocks_.try_emplace(request.blocks[i]);
      Seen& seen = found->second;
      if (is_new && i != 0) seen.parent = UnitId{request.blocks[i - 1]};
      if (i + 1 >= full) continue;
      if (!seen.next) seen.next = request.blocks[i + 1];
      if (*seen.next != request.blocks[i + 1]) shared = i + 1;
    }
    for (std::size_t i = 0; i < shared; ++i) blocks_[request.blocks[i]].shared = true;
  }

 private:
  struct Seen {
    std::optional<UnitId> parent{};
    std::optional<std::uint64_t> next{};  // the first full block that followed it
    bool shared = false;
  };
  std::unordered_map<std::uint64_t, Seen> blocks_;
};

}  // namespace

EvictionStream EvictionStream::of_blocks(const std::vector<BlockRequest>& requests) {
  EvictionStream stream;
  SeenBlocks seen;
  for (const BlockRequest& request : requests) {
    if (request.blocks.empty()) continue;
    UnitAccess access{
        .at = request.at, .new_blocks = seen.new_in(request), .output_tokens = request.output_tokens};
    Arrival& arrival = stream.arrivals_.emplace_back();
    for (const std::uint64_t block : request.blocks) {
      access.priority = seen.priority(block);
      arrival.push_back({UnitId{block}, access, access.size});
    }
    arrival.back().access.partial = request.partial;
    seen.add(request);
    for (std::size_t i = 0; i < arrival.size(); ++i)
      arrival[i].access.parent = seen.parent(request.blocks[i]);
    std::ranges::reverse(arrival);  // the first block is of use to most, and used last
  }
  return stream;
}

EvictionStream EvictionStream::of_turns(const std::vector<Turn>& turns) {
  EvictionStream stream;
  for (const Turn& turn : turns) {
    const UnitAccess access{.at = turn.at,
                            .size = turn.size,
                            .label = turn.label,
                            .whole_sequence = true,
                            .new_blocks = turn.new_blocks,
                            .output_tokens = turn.output_tokens};
    stream.arrivals_.push_back({{UnitId{turn.sequence}, access, turn.wanted}});
  }
  return stream;
}

std::unique_ptr<EvictionPolicy> EvictionStream::policy_of(std::string_view name, Bytes capacity,
                                                          bool leaf_first) const {
  if (name != "opt")
    return leaf_first ? make_leaf_first_policy(name, capacity) : make_eviction_policy(name, capacity);
  std::vector<UnitId> future;
  for (const Arrival& arrival : arrivals_)
    for (const Use& use : arrival) future.push_back(use.unit);
  return std::make_unique<Belady>(future);
}

EvictionFigures EvictionStream::replay(std::string_view name, Bytes capacity, bool leaf_first) const {
  const std::unique_ptr<EvictionPolicy> policy = policy_of(name, capacity, leaf_first);
  EvictionFigures out;
  std::unordered_map<UnitId, Bytes> held;
  Bytes in_use{};
  for (const Arrival& arrival : arrivals_) {
    for (const Use& use : arrival) {
      if (use.wanted.count == 0) continue;
      const bool hit = held.contains(use.unit);
      out.accesses += 1;
      out.hits += hit;
      out.wanted += use.wanted;
      if (!hit) out.missing += use.wanted;
    }
    for (const Use& use : arrival) {
      Bytes& size = held[use.unit];
      in_use = in_use - size + use.access.size;
      size = use.access.size;
      policy->access(use.unit, use.access);
      while (in_use > capacity) {
        const UnitId victim = policy->victim(use.access.at).value();
        policy->evicted(victim);
        in_use -= held.at(victim);
        held.erase(victim);
        ++out.evictions;
      }
      out.most_ghosts = std::max<std::uint64_t>(out.most_ghosts, policy->ghosts());
    }
  }
  return out;
}

}  // namespace vmm
