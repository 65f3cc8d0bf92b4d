// Windows that slide along in place: what they leave behind goes back at once.
//
// A step of a KvCache leaves such pages mapped until somebody needs their memory (Slots::move_windows). A
// cache of which the window is most must not: for each page ahead it would hold on to one behind.
#include <algorithm>

#include "base/error.h"
#include "engine/slots.h"

namespace vmm {
namespace {

constexpr int most_attempts = 64;

}  // namespace

Tokens Slots::slide(std::uint32_t number, Tokens before, const Fence& readers) {
  std::lock_guard owner(owner_mutex_);
  Slot& slot = slots_.at(number);
  if (before.count > slot.passed) {
    for (const SlotPart& part : parts_) {
      std::vector<PageRange> ranges;
      part.append_pages(number, part.behind_window({slot.passed}), part.behind_window(before), ranges);
      for (PageIndex page : each_page(ranges))
        if (!pool().shared(part.lease->reservation(), page)) slid_ += part.page_bytes();
      pool().retire(part.lease->reservation(), ranges, readers);
    }
    slot.passed = before.count;
  }
  if (slid_.count == 0) return next_slide({slot.passed});
  try {
    pool().reclaiming().drain_retired();
    // A page on its own is free for any other now. One of a run is not, before the whole run is free.
    const bool of_run = pool().driver().capabilities().merges_neighbours;
    slid_ -= of_run ? std::min(slid_, pool().reclaiming().release_free(slid_)) : slid_;
  } catch (const std::exception& error) {
    pool().log().write(LogLevel::warning, error.what());
  }
  // The pager may be unmapping it just now. Or others have what it was, and it will not come.
  if (slid_.count != 0 && ++slide_attempts_ < most_attempts) return before;
  slid_ = {};
  slide_attempts_ = 0;
  return next_slide({slot.passed});
}

/// The least number of tokens, more than `before`, with which a page of some part is behind its window that
/// is not yet.
Tokens Slots::next_slide(Tokens before) const {
  Tokens next{~std::uint64_t{0}};
  for (const SlotPart& part : parts_) {
    if (part.window.count == 0) continue;
    const Bytes end = part.page_bytes() * (part.behind_window(before).count + 1);
    const std::uint64_t tokens = (end.count + part.record_bytes.count - 1) / part.record_bytes.count;
    next = std::min(next, Tokens{tokens + part.window.count - 1});
  }
  return next;
}

}  // namespace vmm
