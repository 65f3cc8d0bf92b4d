// Slots that keep the tokens of a sequence that has ended, for those that will begin with the same.
#include <algorithm>

#include "engine/slots_needs.h"

namespace vmm {

Tokens Slots::Needs::holds(std::uint32_t number, Tokens at_most) const {
  std::vector<PageRange> extents;
  while (at_most.count != 0) {
    Tokens found = at_most;
    for (const SlotPart& part : slots_.parts_) {
      const LivePages live = part.live_pages(at_most, at_most);
      extents.clear();
      part.append_pages(number, live.first, live.end, extents);
      for (const PageRange& extent : extents) {
        const Pages there = pages_->used(part.lease->reservation(), extent);
        if (there != extent.count) found = std::min(found, part.room_in(live.first + there));
      }
    }
    if (found == at_most) break;
    at_most = found;  // for fewer tokens a window needs others
  }
  return at_most;
}

bool Slots::Needs::keep(std::uint32_t number, Tokens length) {
  for (const SlotPart& part : slots_.parts_) {
    const LivePages live = part.live_pages(length, length);
    ranges_.clear();
    part.append_pages(number, live.first, live.end, ranges_);
    if (!pages_->may_keep(part.lease->reservation(), ranges_)) return false;
    pages_->set(part.lease->reservation(), ranges_, Need::kept);
  }
  return true;
}

void Slots::Needs::note_use(std::uint32_t number) {
  const std::uint64_t use = pages_->new_use();  // one, so that all parts give up the same tokens
  for (const SlotPart& part : slots_.parts_)
    pages_->note_use(part.lease->reservation(), part.first(number), part.extents, use);
}

void Slots::Needs::forget_use(std::uint32_t number) {
  for (const SlotPart& part : slots_.parts_)
    pages_->forget_use(part.lease->reservation(), part.first(number), part.extents);
}

Pages Slots::whole_pages(Tokens length) const {
  Pages sum;
  for (const SlotPart& part : parts_) {
    const Pages behind = part.behind_window(length);
    sum += (std::max(part.whole_pages(length), behind) - behind) * part.extents;
  }
  return sum;
}

Pages Slots::whole_pages_missing(std::uint32_t number, Tokens length) const {
  Bytes sum;
  for (const SlotPart& part : parts_) {
    std::vector<PageRange> pages;
    part.append_pages(number, part.behind_window(length), part.whole_pages(length), pages);
    sum += pool().missing(part.lease->reservation(), pages);
  }
  return {sum / page_bytes()};
}

bool Slots::reaches_no_further(Tokens length, Tokens longer) const {
  return std::ranges::all_of(
      parts_, [&](const SlotPart& part) { return part.behind_window(length) >= part.behind_window(longer); });
}

bool Slots::can_go_back(std::uint32_t number, Tokens to) const {
  return reaches_no_further(to, {slots_.at(number).passed});
}

void Slots::set_aside(std::uint32_t number, Tokens held, const Fence& readers, Need need) {
  std::lock_guard owner(owner_mutex_);
  Slot& slot = slots_.at(number);
  slot.aside = held.count;
  const Tokens needed = announce_no_more(number);
  for (const SlotPart& part : parts_) {
    Reservation& reservation = part.lease->reservation();
    const LivePages live = part.live_pages(held, held);
    std::vector<PageRange> behind, held_pages, rest;
    part.append_pages(number, {}, live.first, behind);
    part.append_pages(number, live.first, live.end, held_pages);
    part.append_pages(number, live.end, part.pages_for(needed), rest);
    if (!behind.empty()) pool().set_aside(reservation, behind, readers, Need::none);
    pool().set_aside(reservation, held_pages, readers, need);
    pool().unkeep(reservation, rest, readers);
  }
  set_length(number, {}, {});
}

void Slots::let_go(std::uint32_t number, const Fence& readers) {
  std::lock_guard owner(owner_mutex_);
  let_go_beyond(number, {}, readers);
}

/// Nobody finds what was set aside of the pages that hold none of the first `length` tokens.
void Slots::let_go_beyond(std::uint32_t number, Tokens length, const Fence& readers) {
  Slot& slot = slots_.at(number);
  for (const SlotPart& part : parts_) {
    std::vector<PageRange> pages;
    part.append_pages(number, part.pages_for(length), part.pages_for({slot.aside.load()}), pages);
    pool().let_go(part.lease->reservation(), pages, readers);
  }
  slot.aside = std::min(slot.aside.load(), length.count);
}

void Slots::put_back(std::uint32_t number, Tokens length, const Fence& readers, Need need) {
  std::lock_guard owner(owner_mutex_);
  for (const SlotPart& part : parts_) {
    const LivePages live = part.live_pages(length, length);
    std::vector<PageRange> pages;
    part.append_pages(number, live.first, live.end, pages);
    pool().set_aside(part.lease->reservation(), pages, readers, need);
  }
}

void Slots::adopt(std::uint32_t number, Tokens length, const Fence& readers) {
  std::lock_guard owner(owner_mutex_);
  let_go_beyond(number, length, readers);
  std::vector<std::vector<PageRange>> tails(parts_.size());
  std::size_t mapped = 0;
  try {
    for (; mapped < parts_.size(); ++mapped) {
      const SlotPart& part = parts_[mapped];
      part.append_pages(number, part.pages_for(length), part.pages_for(reach(length)), tails[mapped]);
      pool().map(part.lease->reservation(), tails[mapped], {});
    }
  } catch (...) {
    for (std::size_t i = 0; i < mapped; ++i) pool().call_off(parts_[i].lease->reservation(), tails[i]);
    throw;
  }
  set_length(number, length, length);
}

/// The slot has so many tokens, of which `before` were there before the last step.
void Slots::set_length(std::uint32_t number, Tokens length, Tokens before) {
  Slot& slot = slots_.at(number);
  const Tokens kept = reach(length);
  slot.kept = kept.count;
  slot.passed = before.count;
  limits_[number] = without_tail(room_in_pages_for(kept));
  std::lock_guard lock(due_mutex_);
  announce_kept(number);
}

}  // namespace vmm
