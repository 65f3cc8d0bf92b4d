// Releasing a tensor's rows: their pages go when nobody uses them and nobody has pinned them.
#include <algorithm>
#include <string>

#include "base/error.h"
#include "engine/pager.h"
#include "engine/rows.h"

namespace vmm {

/// Whether the page holds tokens in use, of any row, other than [from, to).
bool Rows::holds_others(std::uint64_t page, Tokens from, Tokens to) const {
  const Bytes begin = page_ * page;
  const Bytes end = std::min(begin + page_, row_bytes() * shape_.rows);
  auto overlaps = [&](const ByteRange& bytes) {
    return bytes.size.count != 0 && bytes.offset < end && begin < bytes.offset + bytes.size;
  };
  for (std::uint64_t row = begin / row_bytes(); row_bytes() * row < end; ++row) {
    const Tokens floor{floors_[row].load()};
    if (overlaps(bytes_of(row, floor, std::min(from, mark(row)))) ||
        overlaps(bytes_of(row, std::max(to, floor), mark(row))))
      return true;
  }
  return false;
}

bool Rows::covers(const Spans& spans, std::uint64_t page) const {
  const auto after =
      std::ranges::upper_bound(spans, page, {}, [&](const ByteRange& span) { return first_page(span); });
  return after != spans.begin() && page < end_page(*std::prev(after));
}

bool Rows::pinned(std::uint64_t page) const {
  return std::ranges::any_of(pins_, [&](const Pin* pin) { return covers(pin->spans_, page); });
}

void Rows::retire(const std::vector<std::uint64_t>& pages) {
  if (pages.empty()) return;
  std::vector<PageRange> ranges;
  for (std::uint64_t page : pages) {
    if (ranges.empty() || ranges.back().first.value + ranges.back().count.count != page)
      ranges.push_back({{static_cast<std::uint32_t>(page)}, {0}});
    ranges.back().count += Pages{1};
  }
  pool().retire(lease_->reservation(), ranges, pool().epochs().fence());
  pager_->wake();
}

void Rows::release(Tokens from, Tokens to) {
  require_open();
  if (from > to || to > shape_.tokens)
    throw InvalidArgument("start, end: expected start <= end <= " + std::to_string(shape_.tokens.count));
  {
    std::lock_guard lock(mutex_);
    release_locked(from, to);
  }
  give_back_if_closed();
}

void Rows::release_locked(Tokens from, Tokens to) {
  if (from == to) return;
  std::vector<std::uint64_t> pages;
  std::uint64_t next = 0;
  for (std::uint64_t row = 0; row < shape_.rows; ++row) {
    if (from.count <= floors_[row]) floors_[row] = std::max(floors_[row].load(), to.count);
    if (to >= mark(row)) marks_[row] = std::min(from, mark(row)).count;
    if (floors_[row] >= marks_[row]) floors_[row] = marks_[row] = 0;  // nothing is in use
  }
  for (std::uint64_t row = 0; row < shape_.rows; ++row) {
    const ByteRange bytes = bytes_of(row, from, to);
    for (std::uint64_t page = std::max(next, first_page(bytes)); page < end_page(bytes); ++page) {
      if (holds_others(page, from, to)) continue;
      usable_.remove(page);
      if (pinned(page))
        doomed_.insert(page);
      else
        pages.push_back(page);
    }
    next = std::max(next, end_page(bytes));
  }
  retire(pages);
}

void Rows::unpin(const Pin& pin) noexcept {
  try {
    {
      std::lock_guard lock(mutex_);
      pins_.erase(pin.place_);
      std::vector<std::uint64_t> pages;
      for (std::uint64_t page : doomed_)
        if (covers(pin.spans_, page) && !pinned(page)) pages.push_back(page);
      for (std::uint64_t page : pages) doomed_.erase(page);
      retire(pages);
      if (pages.empty()) return;
    }
    give_back_if_closed();
  } catch (const std::exception& error) {  // the lease's end gives the pages back
    pool().log().write(LogLevel::warning, std::string("releasing what was pinned: ") + error.what());
  }
}

void Rows::end() {
  pool().fork_guard().require_parent("this tensor");
  {
    std::lock_guard lock(mutex_);
    if (ended_.exchange(true)) return;
    release_locked({}, shape_.tokens);
  }
  give_back_if_closed();
}

/// A closed pool has no pager that would give the pages back.
void Rows::give_back_if_closed() {
  if (pool().closed()) pool().trim({~std::uint64_t{0}}, true);
}

void Rows::close() noexcept {
  try {
    end();
  } catch (const std::exception& error) {  // the lease's end gives the pages back
    pool().log().write(LogLevel::warning, std::string("releasing a tensor: ") + error.what());
  }
}

/// Appends the parts of a span whose pages are usable, and joins parts that touch.
void Rows::append_usable(Spans& out, const ByteRange& span) const {
  for (std::uint64_t page = first_page(span); page < end_page(span); ++page) {
    if (!usable_.has(page)) continue;
    const Bytes from = std::max(span.offset, page_ * page);
    const Bytes to = std::min(span.offset + span.size, page_ * (page + 1));
    if (!out.empty() && out.back().offset + out.back().size == from)
      out.back().size = to - out.back().offset;
    else
      out.push_back({from, to - from});
  }
}

void Rows::zero_mapped(Spans spans, StreamHandle stream) {
  require_open();
  const Pin against_release(observer(), spans);
  Spans usable;
  for (const ByteRange& span : spans) append_usable(usable, span);
  for (const ByteRange& part : usable) pool().zero(lease_->reservation(), part.offset, part.size, stream);
}

Rows::Spans Rows::in_use() const {
  Spans out;
  for (std::uint64_t row = 0; row < shape_.rows; ++row)
    append_usable(out, bytes_of(row, {floors_[row].load()}, mark(row)));
  return out;
}

}  // namespace vmm
