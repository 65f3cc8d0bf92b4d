// What a physical page of the simulated driver holds: numbers that stand for bytes.
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "base/types.h"

namespace vmm {

/// By offset from the page's start. What nobody has written has no number.
class SimPage {
 public:
  /// Bytes [from, to) have this number, or none, from now on.
  void write(Bytes from, Bytes to, std::optional<std::uint64_t> number);
  /// Bytes [at, at + size) hold what [from, from + size) of `source` do; that may be this page.
  void copy(Bytes at, const SimPage& source, Bytes from, Bytes size);
  /// All of the page holds what `source` does.
  void take(const SimPage& source);
  /// The first byte of [from, to) that has another number, or none; `to` where all have this one.
  Bytes first_other(Bytes from, Bytes to, std::uint64_t number) const;
  std::optional<std::uint64_t> at(Bytes offset) const;
  /// How often it was changed.
  std::uint64_t changes() const { return changes_; }

 private:
  struct Run {
    Bytes from, to;
    std::uint64_t number;
  };
  std::vector<Run> runs_;  // in order, and none overlaps another
  std::uint64_t changes_ = 0;
};

}  // namespace vmm
