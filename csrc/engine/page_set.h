// A set of pages of one reservation that can be read while it is written.
#pragma once

#include <atomic>
#include <cstdint>
#include <vector>

#include "base/types.h"

namespace vmm {

/// Reads are safe beside one writer; writers must exclude each other where they must agree.
class PageSet {
 public:
  explicit PageSet(Pages size) : words_((size.count + 63) / 64) {}

  bool has(std::uint64_t page) const { return (words_[page / 64].load() >> page % 64 & 1) != 0; }
  /// Pages [first, end).
  bool has_all(std::uint64_t first, std::uint64_t end) const {
    for (std::uint64_t page = first; page < end; page = (page / 64 + 1) * 64) {
      std::uint64_t wanted = ~std::uint64_t{0} << page % 64;
      if (end < (page / 64 + 1) * 64) wanted &= (std::uint64_t{1} << end % 64) - 1;
      if ((words_[page / 64].load() & wanted) != wanted) return false;
    }
    return true;
  }
  void add(std::uint64_t page) { words_[page / 64].fetch_or(std::uint64_t{1} << page % 64); }
  void remove(std::uint64_t page) { words_[page / 64].fetch_and(~(std::uint64_t{1} << page % 64)); }

 private:
  std::vector<std::atomic<std::uint64_t>> words_;
};

}  // namespace vmm
