// A set of pages of one reservation, in which the next one is found without looking at all others.
#pragma once

#include <algorithm>
#include <bit>
#include <cstdint>
#include <optional>
#include <vector>

#include "base/types.h"

namespace vmm {

/// A bit for each page, and one for each 64 pages that says whether any is in. Not thread-safe.
class PageBits {
 public:
  explicit PageBits(Pages size) : words_((size.count + 63) / 64), any_((words_.size() + 63) / 64) {}

  bool empty() const {
    return std::ranges::all_of(any_, [](std::uint64_t word) { return word == 0; });
  }
  bool has(PageIndex page) const { return (words_[page.value / 64] >> page.value % 64 & 1) != 0; }
  void set(PageIndex page, bool in) {
    const std::size_t word = page.value / 64;
    assign(words_[word], page.value % 64, in);
    assign(any_[word / 64], word % 64, words_[word] != 0);
  }
  /// The last one before `end`.
  std::optional<PageIndex> last_before(std::uint64_t end) const {
    std::uint64_t word = end / 64;
    if (const std::uint64_t bits = below(words_, end); bits != 0) return {{last_of(word, bits)}};
    std::uint64_t group = word / 64;
    std::uint64_t words = below(any_, word);
    while (words == 0) {
      if (group-- == 0) return {};
      words = any_[group];
    }
    word = last_of(group, words);
    return {{last_of(word, words_[word])}};
  }

 private:
  using Words = std::vector<std::uint64_t>;

  static void assign(std::uint64_t& word, std::uint64_t bit, bool value) {
    word = (word & ~(std::uint64_t{1} << bit)) | (std::uint64_t{value} << bit);
  }
  /// The bits of end's word that are before it.
  static std::uint64_t below(const Words& words, std::uint64_t end) {
    return end % 64 == 0 ? 0 : words[end / 64] & ((std::uint64_t{1} << end % 64) - 1);
  }
  static std::uint32_t last_of(std::uint64_t word, std::uint64_t bits) {
    return static_cast<std::uint32_t>(word * 64 + 63 - static_cast<std::uint64_t>(std::countl_zero(bits)));
  }

  Words words_;
  Words any_;
};

}  // namespace vmm
