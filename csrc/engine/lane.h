// Lane: the stretches of Blocks in which a block lies at the same place of the pages.
//
// Two stretches whose starts differ by whole pages are *congruent*: counted from the first page of each, a
// block touches the same pages in both. So the users of a page need to be counted once for all of them, and
// a block costs the same however many layers there are. Such pages, one of each stretch, are a *row*.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "engine/range.h"

namespace vmm {

class Lane {
 public:
  struct Rows {
    std::uint64_t first, end;
  };

  /// Blocks of `stride` bytes, of which the first begins `into_page` bytes into the row 0.
  Lane(Bytes into_page, Bytes stride, std::uint64_t blocks, unsigned page_shift)
      : into_page_(into_page),
        stride_(stride),
        page_shift_(page_shift),
        users_(blocks == 0 ? 0 : rows_of(blocks - 1).end) {}

  Bytes into_page() const noexcept { return into_page_; }
  void add_stretch(std::uint32_t first_page) { first_pages_.push_back(first_page); }

  Rows rows_of(std::uint64_t block) const noexcept {
    const Bytes start = into_page_ + stride_ * block;
    return {start.count >> page_shift_, (((start + stride_).count - 1) >> page_shift_) + 1};
  }
  /// Visits the block's pages in each stretch.
  template <class Visit>
  void for_each_range(std::uint64_t block, Visit visit) const {
    for_each_range(rows_of(block), visit);
  }

  /// Begins to note which rows get their first user, or lose their last; makes room for so many blocks.
  void begin(std::size_t blocks) {
    changed_.clear();
    changed_.reserve(blocks);
  }
  /// The block is used so by one more, or by one fewer.
  void count(std::uint64_t block, Use use, bool in) noexcept {
    const Rows rows = rows_of(block);
    for (std::uint64_t row = rows.first; row < rows.end; ++row) {
      std::uint32_t& users = users_[row][use];
      if (in ? users++ == 0 : --users == 0) note(row);
    }
  }
  /// Ends that: rows of blocks that came in any order are told to the pool in runs.
  void end() noexcept {
    std::ranges::sort(changed_, {}, &Rows::first);
    std::size_t runs = 0;
    for (const Rows& rows : changed_) {
      if (runs != 0 && changed_[runs - 1].end == rows.first)
        changed_[runs - 1].end = rows.end;
      else
        changed_[runs++] = rows;
    }
    changed_.resize(runs);
  }
  /// How many pages the noted rows have.
  std::size_t pages_changed() const noexcept {
    std::size_t rows = 0;
    for (const Rows& run : changed_) rows += run.end - run.first;
    return rows * first_pages_.size();
  }
  /// Visits them.
  template <class Visit>
  void for_each_changed(Visit visit) const {
    for (std::uint32_t first_page : first_pages_)
      for (const Rows& run : changed_) visit(pages(first_page, run));
  }

 private:
  static PageRange pages(std::uint32_t first_page, const Rows& rows) noexcept {
    return {{static_cast<std::uint32_t>(first_page + rows.first)}, {rows.end - rows.first}};
  }
  template <class Visit>
  void for_each_range(const Rows& rows, Visit visit) const {
    for (std::uint32_t first_page : first_pages_) visit(pages(first_page, rows));
  }
  /// The rows of a block that change at once are neighbours: only the first and the last may be shared.
  void note(std::uint64_t row) noexcept {
    if (!changed_.empty() && changed_.back().end == row)
      ++changed_.back().end;
    else
      changed_.push_back({row, row + 1});
  }

  Bytes into_page_;
  Bytes stride_;
  unsigned page_shift_;
  std::vector<Users> users_;  // of each row
  std::vector<std::uint32_t> first_pages_;
  std::vector<Rows> changed_;
};

}  // namespace vmm
