// Requests of a trace, and which tokens they have.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "base/clock.h"

namespace vmm {

struct Request {
  Nanoseconds arrival;
  std::uint32_t prompt;  // tokens
  std::uint32_t output;  // tokens; the prompt's last chunk gives the first of them
  // What the prompt begins with, where that is known: blocks of so many tokens, of which the first tokens are
  // these, and each further one is 1 more. Equal blocks have equal tokens.
  std::vector<std::int32_t> blocks = {};
  std::uint32_t block_tokens = 0;
};

/// Sets `out` to tokens [from, to) of a request, prompt and answer. Beyond its blocks all are the same
/// negative number, which no other request has: nothing can begin with them but the same request, computed
/// again. That holds for answers, too: a trace says how long they were, and not what they said.
inline void tokens_of(const Request& request, std::uint32_t number, std::uint32_t from, std::uint32_t to,
                      std::vector<std::int32_t>& out) {
  const std::uint64_t in_blocks = request.blocks.size() * std::uint64_t{request.block_tokens};
  const auto known = static_cast<std::uint32_t>(std::min<std::uint64_t>(in_blocks, request.prompt));
  out.clear();
  for (std::uint32_t i = from; i < std::min(to, known); ++i)
    out.push_back(request.blocks[i / request.block_tokens] +
                  static_cast<std::int32_t>(i % request.block_tokens));
  out.resize(to - from, -1 - static_cast<std::int32_t>(number));
}

}  // namespace vmm
