// Slots that share pages: a sequence that begins with the tokens of another.
//
// Lengths only grow, so of what two slots share only the page that the next token goes to could ever be
// written. That page is never shared: fork() copies it, and make_private() does where a sequence is cut back.
#include <algorithm>

#include "base/error.h"
#include "engine/slots.h"

namespace vmm {
namespace {

constexpr int attempts = 3;

}  // namespace

void Slots::fork(const SlotLength& from, std::uint32_t to, StreamHandle stream, bool share) {
  std::lock_guard owner(owner_mutex_);
  // 1. Unmap what lies where pages will be shared, and where a window has passed: nothing goes there, and
  // what is mapped of a slot counts as its tokens. What is copied goes to the pages that are there. Nobody
  // prepares the slot any more, but the pager may still be mapping what was.
  {
    const std::lock_guard until_it_is_done(ahead_mutex_);
  }
  std::vector<PageRange> ranges;
  for (const SlotPart& part : parts_) {
    const Pages own = part.behind_window(from.before);
    ranges.clear();
    part.append_pages(to, {}, share ? std::max(own, part.whole_pages(from.length)) : own, ranges);
    pool().retire(part.lease->reservation(), ranges, {});
  }
  try {
    // 2. Share whole pages, and copy the rest into pages of its own.
    if (share) share_pages(from, to);
    copy_rest(from, to, stream, share);
  } catch (...) {
    const Fence copies = fence_after(stream);
    for (const SlotPart& part : parts_) {
      ranges.clear();
      part.append_pages(to, {}, part.pages_for(reach(from.length)), ranges);
      pool().unkeep(part.lease->reservation(), ranges, copies);
    }
    throw;
  }
  // 3. Commit.
  set_length(to, from.length, from.before);
}

Fence Slots::fence_after(StreamHandle stream) {
  try {
    pool().epochs().cover(stream);
  } catch (const std::exception& error) {  // fences wait for the stream all the same: see Epochs::mark
    pool().log().write(LogLevel::warning, error.what());
  }
  return pool().epochs().fence();
}

void Slots::share_pages(const SlotLength& from, std::uint32_t to) {
  for (const SlotPart& part : parts_) {
    const Pages first = part.behind_window(from.before), end = part.whole_pages(from.length);
    std::vector<PageRange> source, target;
    part.append_pages(from.slot, first, end, source);
    part.append_pages(to, first, end, target);
    if (target.empty()) continue;
    MapOptions options;
    options.source = {&part.lease->reservation(), source};
    pool().map(part.lease->reservation(), target, options);
  }
}

void Slots::copy_rest(const SlotLength& from, std::uint32_t to, StreamHandle stream, bool share) {
  for (const SlotPart& part : parts_) {
    const LivePages live = part.live_pages(from.before, reach(from.length));
    const Pages first = share ? std::max(live.first, part.whole_pages(from.length)) : live.first;
    std::vector<PageRange> own;
    part.append_pages(to, first, live.end, own);
    pool().map(part.lease->reservation(), own, {});
    const Bytes begin = part.page_bytes() * first.count, end = part.record_bytes * from.length.count;
    if (begin >= end) continue;
    std::vector<ByteRange> source, target;
    part.append_extents(from.slot, begin, end, source);
    part.append_extents(to, begin, end, target);
    Driver& driver = pool().driver();
    driver.together([&] {
      for (std::size_t i = 0; i < source.size(); ++i)
        driver.copy(part.lease->base() + target[i].offset, part.lease->base() + source[i].offset,
                    source[i].size, stream);
    });
  }
}

/// Pages, one by one, that stay kept when the slot is cut back to `to`, will be written, the tail's among
/// them, and are shared.
std::vector<PageRange> Slots::shared_pages_of(const SlotPart& part, std::uint32_t slot, Tokens to) const {
  std::vector<PageRange> ranges, out;
  part.append_pages(slot, part.whole_pages(to), part.pages_for(reach(to)), ranges);
  for (PageIndex page : each_page(ranges))
    if (pool().shared(part.lease->reservation(), page)) out.push_back({page, Pages{1}});
  return out;
}

bool Slots::shares_pages_beyond(std::uint32_t slot, Tokens to) const {
  return std::ranges::any_of(parts_,
                             [&](const SlotPart& part) { return !shared_pages_of(part, slot, to).empty(); });
}

Tokens Slots::before_shared(std::uint32_t slot, Tokens to) const {
  while (to.count != 0 && shares_pages_beyond(slot, to)) {
    Tokens less = to - Tokens{1};
    for (const SlotPart& part : parts_) less = std::min(less, part.room_in(part.whole_pages(to)));
    to = less;
  }
  return to;
}

/// Copies the shared pages that token `to` and later ones go to, into memory that nobody else has.
std::vector<Slots::Copies> Slots::copy_shared(std::uint32_t number, Tokens to, StreamHandle stream) {
  std::vector<Copies> out;
  try {
    for (const SlotPart& part : parts_) {
      std::vector<PageRange> pages = shared_pages_of(part, number, to);
      if (pages.empty()) continue;
      const PageRange all{{0}, {pages.size()}};
      Copies& made = out.emplace_back(&part, std::move(pages), nullptr, all);
      made.lease = pool().reserve({.page_bytes = part.page_bytes(),
                                   .extent_bytes = part.page_bytes(),
                                   .extents = all.count.count,
                                   .kind = part.lease->shape().kind,
                                   .longest = {},
                                   .tenant = tenant().id});
      pool().map(made.lease->reservation(), std::span(&all, 1), {});
      for (std::size_t i = 0; i < made.pages.size(); ++i)
        pool().driver().copy(made.lease->base() + part.page_bytes() * i,
                             part.lease->base() + part.page_bytes() * made.pages[i].first.value,
                             part.page_bytes(), stream);
    }
  } catch (...) {
    fence_after(stream);  // the leases end, and whoever gets their memory must wait for the copies
    throw;
  }
  return out;
}

bool Slots::make_private(std::uint32_t number, Tokens to, const std::function<Fence()>& readers,
                         StreamHandle stream) {
  std::lock_guard owner(owner_mutex_);
  // 1. Copy. If this throws, nothing has changed.
  const std::vector<Copies> copies = copy_shared(number, to, stream);
  const Fence fence = readers();
  // 2. Once nobody reads the shared pages here any more, the copies take their place.
  bool all_there = true;
  for (const Copies& each : copies) {
    Reservation& reservation = each.part->lease->reservation();
    pool().retire(reservation, each.pages, fence);
    MapOptions options;
    options.source = {&each.lease->reservation(), std::span(&each.all, 1)};
    all_there &= map_after_all(reservation, each.pages, options);
    pool().unkeep(each.lease->reservation(), std::span(&each.all, 1), fence);
  }
  try {
    pool().reclaiming().drain_retired();   // else the pages would go on being shared for a while
  } catch (const std::exception& error) {  // the pager tries again
    pool().log().write(LogLevel::warning, error.what());
  }
  return all_there;
}

/// Maps what has no other copy at hand, so it does not give up at once. False where that does not help.
bool Slots::map_after_all(Reservation& reservation, std::span<const PageRange> pages,
                          const MapOptions& options) {
  for (int i = 0; i < attempts; ++i) {
    try {
      pool().map(reservation, pages, options);
      return true;
    } catch (const std::exception& error) {
      pool().log().write(LogLevel::error, "mapping the copy of a shared page: ", error.what());
    }
  }
  return false;
}

}  // namespace vmm
