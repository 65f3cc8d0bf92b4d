// What sequences begin with.
#pragma once

#include <cstdint>
#include <span>
#include <string>

#include "policy/prefix_index.h"

namespace vmm {

/// The tokens that a sequence begins with, and who owns them: sequences with another salt do not find them.
struct Prompt {
  std::span<const PrefixIndex::Token> tokens;
  std::string salt;
};

/// What became of prompts that were looked up.
struct PrefixStats {
  // Sequences that found some of their tokens, by what was done; those that are restored have them in a tier.
  std::uint64_t adopted, aliased, copied, restored;
  Tokens looked_up, found;
  std::uint64_t cached_slots;  // that nobody is in, and whose tokens can be found
};

}  // namespace vmm
