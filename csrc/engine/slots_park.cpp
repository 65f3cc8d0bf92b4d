// Slots whose sequence is idle: see parking.h.
#include "engine/slots.h"

namespace vmm {

std::vector<ParkedPage> Slots::pages_of(std::uint32_t number, Tokens length) const {
  std::vector<ParkedPage> out;
  for (const SlotPart& part : parts_) {
    const LivePages live = part.live_pages(length, length);
    std::vector<PageRange> extents;
    part.append_pages(number, live.first, live.end, extents);
    for (const PageRange& extent : extents)
      for (std::uint64_t at = 0; at < extent.count.count; ++at) {
        const Pages before = live.first + Pages{at};
        const Bytes end = part.page_bytes() * (before.count + 1);
        out.push_back({&part.lease->reservation(),
                       {static_cast<std::uint32_t>(extent.first.value + at)},
                       part.room_in(before),
                       {round_up(end, part.record_bytes) / part.record_bytes}});
      }
  }
  return out;
}

void Slots::park(std::uint32_t number, Tokens length, const Fence& readers) {
  std::lock_guard owner(owner_mutex_);
  const Slot& slot = slots_.at(number);
  const Tokens needed = announce_no_more(number);
  for (const SlotPart& part : parts_) {
    const LivePages live = part.live_pages(length, length);
    std::vector<PageRange> rest;
    part.append_pages(number, part.behind_window({slot.passed}), live.first, rest);
    part.append_pages(number, live.end, part.pages_for(needed), rest);
    pool().unkeep(part.lease->reservation(), rest, readers);
  }
  set_length(number, {}, {});
}

void Slots::resume(std::uint32_t number, Tokens length) {
  std::lock_guard owner(owner_mutex_);
  set_length(number, length, length);
}

}  // namespace vmm
