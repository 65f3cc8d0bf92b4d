// Eviction policies over the requests of a trace: what each would have had on the device.
#pragma once

#include <cstdint>
#include <memory>
#include <string_view>
#include <vector>

#include "policy/eviction/eviction_policy.h"

namespace vmm {

/// A prompt, as the blocks of the tree of all prompts that it is made of.
struct BlockRequest {
  Nanoseconds at;
  std::vector<std::uint64_t> blocks;  // each stands for its tokens and all before them
  bool partial = false;               // the last block is not full
  std::uint32_t output_tokens = 0;
};

/// A turn of a sequence that is parked between its turns.
struct Turn {
  Nanoseconds at;
  std::uint64_t sequence;
  Bytes wanted;  // of what it had before, what this turn goes on from
  Bytes size;    // when the turn is over
  std::uint32_t label = 0;
  std::uint32_t new_blocks = 0;
  std::uint32_t output_tokens = 0;
};

struct EvictionFigures {
  std::uint64_t accesses = 0;  // of blocks; or turns that go on from something
  std::uint64_t hits = 0;      // of which so many were on the device, whole
  Bytes wanted{}, missing{};   // by those, and of it what was not there
  std::uint64_t evictions = 0;
  std::uint64_t most_ghosts = 0;
};

/// One stream of uses, which many policies and capacities are tried on. "opt" is Belady's.
class EvictionStream {
 public:
  static EvictionStream of_blocks(const std::vector<BlockRequest>& requests);
  static EvictionStream of_turns(const std::vector<Turn>& turns);

  /// `leaf_first` makes the policy evict no block before one that follows it. Raises InvalidArgument for a
  /// policy that is unknown.
  EvictionFigures replay(std::string_view policy, Bytes capacity, bool leaf_first) const;

 private:
  struct Use {
    UnitId unit;
    UnitAccess access;
    Bytes wanted{};
  };
  /// What arrives at once. Its hits are counted before anything of it is used.
  using Arrival = std::vector<Use>;

  std::unique_ptr<EvictionPolicy> policy_of(std::string_view name, Bytes capacity, bool leaf_first) const;

  std::vector<Arrival> arrivals_;
};

}  // namespace vmm
