// Windows that slide along in place: what they leave behind goes back at once.
//
// A step of a KvCache leaves such pages mapped until somebody needs their memory (Slots::move_windows). A
// cache of which the window is most must not: for each page ahead it would hold on to one behind. The pager
// has the calls to make, because they are many, small and slow: each extent leaves a page or two. So that a
// pager that comes late is no reason to hold more, the owner makes them when an eighth of a page is full.
#include <algorithm>

#include "base/error.h"
#include "engine/slots.h"

namespace vmm {
namespace {

constexpr int most_attempts = 64;
constexpr std::uint64_t patient_pages_fraction = 8;

}  // namespace

Tokens Slots::slide(std::uint32_t number, Tokens before, const Fence& readers) {
  std::lock_guard owner(owner_mutex_);
  Slot& slot = slots_.at(number);
  bool finished = finish_slide(number);
  // A page on its own is free for any other when it is unmapped. One of a run is not, before the whole run is
  // free, so its memory goes back to the system.
  const bool to_system = pool().driver().capabilities().merges_neighbours;
  if (before.count > slot.passed) {
    for (const SlotPart& part : parts_) {
      std::vector<PageRange> ranges;
      part.append_pages(number, part.behind_window({slot.passed}), part.behind_window(before), ranges);
      if (ranges.empty()) continue;
      pool().retire(part.lease->reservation(), ranges, readers, to_system);
      if (!slid_from_) slid_from_ = slot.passed;
      finished = false;
    }
    slot.passed = before.count;
    if (!finished) pool().signals().wake();
  }
  return finished ? next_slide({slot.passed}) : std::min(before + patience(), next_slide({slot.passed}));
}

/// Unmaps what has slid out and the pager has not unmapped. False where that is to be tried again.
bool Slots::finish_slide(std::uint32_t number) {
  if (!slid_from_) return true;
  bool finished = true;
  try {
    for (const SlotPart& part : parts_) {
      std::vector<PageRange> ranges;
      part.append_pages(number, part.behind_window({*slid_from_}), part.behind_window(passed(number)),
                        ranges);
      if (!ranges.empty())
        finished &= pool().reclaiming().finish_unmapping(part.lease->reservation(), ranges);
    }
  } catch (const std::exception& error) {
    pool().log().write(LogLevel::warning, error.what());
    finished = false;
  }
  // Work may go on reading it, or the driver refuse: then the pager unmaps it some time.
  if (!finished && ++slide_attempts_ < most_attempts) return false;
  slid_from_.reset();
  slide_attempts_ = 0;
  return true;
}

/// How many tokens come before the owner looks whether the pager has unmapped what has slid out.
Tokens Slots::patience() const {
  Tokens least = max_tokens_;
  for (const SlotPart& part : parts_)
    if (part.window.count != 0) least = std::min(least, part.room_in({1}));
  return {std::max<std::uint64_t>(1, least.count / patient_pages_fraction)};
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
