// Slots whose sequence is idle: see parking.h.
#include "engine/slots.h"

namespace vmm {

std::vector<ParkedPage> Slots::park(std::uint32_t number, Tokens length, const Fence& readers) {
  std::lock_guard owner(owner_mutex_);
  Slot& slot = slots_.at(number);
  const Tokens needed{std::max(slot.kept.load(), slot.announced.load())};
  std::vector<ParkedPage> out;
  std::vector<std::vector<PageRange>> rest(parts_.size());
  for (std::size_t i = 0; i < parts_.size(); ++i) {
    const SlotPart& part = parts_[i];
    const LivePages live = part.live_pages(length, length);
    part.append_pages(number, part.behind_window({slot.passed}), live.first, rest[i]);
    part.append_pages(number, live.end, part.pages_for(needed), rest[i]);
    std::vector<PageRange> pages;
    part.append_pages(number, live.first, live.end, pages);
    for (const PageRange& range : pages)
      for (std::uint64_t at = 0; at < range.count.count; ++at) {
        const Pages before = live.first + Pages{at};
        const Bytes end = part.page_bytes() * (before.count + 1);
        out.push_back({&part.lease->reservation(),
                       {static_cast<std::uint32_t>(range.first.value + at)},
                       part.room_in(before),
                       {round_up(end, part.record_bytes) / part.record_bytes}});
      }
  }
  for (std::size_t i = 0; i < parts_.size(); ++i)
    pool().unkeep(parts_[i].lease->reservation(), rest[i], readers);
  set_length(number, {}, {});
  return out;
}

void Slots::resume(std::uint32_t number, Tokens length) {
  std::lock_guard owner(owner_mutex_);
  set_length(number, length, length);
}

}  // namespace vmm
