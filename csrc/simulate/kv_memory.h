// What a scheduler needs to know of the memory that holds K and V. There is one implementation for each
// allocator that is compared.
#pragma once

#include <cstdint>
#include <span>

#include "base/clock.h"
#include "base/types.h"

namespace vmm {

struct KvUsage {
  Bytes live;         // K and V of the tokens of open sequences
  Bytes held;         // memory of open sequences, including announced prompts and look-ahead
  Bytes mapped;       // everything that is mapped
  Bytes reclaimable;  // the part of it that may be taken for somebody else
};

struct KvCounts {
  std::uint64_t pages_mapped = 0;      // physical pages that were mapped, ahead of need or not
  std::uint64_t pages_first_used = 0;  // those of them that a step came to write
  std::uint64_t pages_late = 0;        // those of these that were not complete when the step was called
  Nanoseconds stalled{};               // time that steps waited for pages
};

/// It has the engine's clock: the time that a call costs the caller passes on that clock.
class KvMemory {
 public:
  virtual ~KvMemory() = default;
  virtual Nanoseconds now() const = 0;
  virtual void sleep_until(Nanoseconds then) = 0;

  virtual Bytes capacity() const = 0;
  virtual std::uint32_t places() const = 0;
  /// The memory that a sequence of `tokens` tokens takes.
  virtual Bytes bytes_for(Tokens tokens) const = 0;

  /// Returns a place for a sequence with `prompt` tokens, of which the first `announced` will come soon.
  virtual std::uint32_t open(Tokens prompt, Tokens announced) = 0;
  using Token = std::int32_t;
  struct Opened {
    std::uint32_t place;
    Tokens cached;  // so many of its tokens need not be computed
  };
  /// Does the same where it is known which tokens the prompt has.
  virtual Opened open_prompt(std::span<const Token> prompt, Tokens announced) {
    return {open({prompt.size()}, announced), {}};
  }
  /// These are the tokens of an open sequence after those that it had, and work that computes them is under
  /// way. Others may begin with them.
  virtual void commit(std::uint32_t, std::span<const Token>) {}
  virtual void announce(std::uint32_t place, Tokens to) = 0;
  /// Begins the next iteration, after which the sequences in `places` have `lengths` tokens. Returns false,
  /// with nothing changed, when there is no memory for it.
  virtual bool step(std::span<const std::int32_t> places, std::span<const std::int32_t> lengths) = 0;
  /// Runs the iteration's kernels beside the caller; they take so long. Returns the time when they are over.
  virtual Nanoseconds run(Nanoseconds takes) = 0;
  virtual void close(std::uint32_t place) = 0;

  virtual KvUsage usage() const = 0;
  virtual KvCounts counts() const = 0;
};

}  // namespace vmm
