// What slots will need: their owner announces it, and the pager maps it.
#include <algorithm>
#include <new>
#include <utility>

#include "base/error.h"
#include "engine/pager.h"
#include "engine/slots_needs.h"

namespace vmm {

void Slots::announce(std::uint32_t slot, Tokens to) {
  const SlotLength coming{slot, to};
  announce(std::span(&coming, 1));
}

void Slots::announce(std::span<const SlotLength> coming) {
  for (const SlotLength& each : coming) check_length("to", each.length);
  const Nanoseconds now = pool().clock().now();
  bool more = false;
  {
    std::lock_guard lock(due_mutex_);
    for (const SlotLength& each : coming) {
      Slot& slot = slots_.at(each.slot);
      if (each.length <= covered_[each.slot]) continue;
      slot.announced = reach(each.length).count;
      covered_[each.slot] = room_in_pages_for(reach(each.length)) - options_.tail;
      if (slot.asked == never) slot.asked = now;
      put_due(each.slot);
      more = true;
    }
  }
  if (more) pager_->notify(*this);
}

void Slots::put_due(std::uint32_t slot) {
  if (!std::exchange(slots_.at(slot).due, true)) due_.push_back(slot);
}

Slots::Needs::Needs(Slots& slots) : slots_(slots), lock_(slots.prepared_mutex_), pages_(slots.pool()) {}

Slots::Needs::~Needs() {
  pages_.reset();
  lock_.unlock();
  if (!lacking_) return;
  try {
    slots_.pager_->notify(slots_);
  } catch (const std::bad_alloc&) {  // the next notification will do
  }
}

/// Sets the need of those pages of tokens [from, to) that are mapped.
void Slots::Needs::set(std::uint32_t slot, Tokens from, Tokens to, Need need) {
  for (const SlotPart& part : slots_.parts_) {
    ranges_.clear();
    part.append_pages(slot, part.pages_for(from), part.pages_for(to), ranges_);
    pages_->set(part.lease->reservation(), ranges_, need);
  }
}

Tokens Slots::Needs::ready(std::uint32_t slot, Tokens at_most) const {
  Tokens tokens = slots_.reach(at_most);
  std::vector<PageRange> extents;
  for (const SlotPart& part : slots_.parts_) {
    extents.clear();
    part.append_pages(slot, {}, part.pages_for(slots_.reach(at_most)), extents);
    for (const PageRange& extent : extents)
      tokens = std::min(tokens, part.room_in(pages_->resident(part.lease->reservation(), extent)));
  }
  return slots_.without_tail(tokens);
}

Tokens Slots::Needs::prepare(std::uint32_t number, Tokens to) {
  slots_.check_length("to", to);
  slots_.touch();
  const Tokens reach = slots_.reach(to);
  const Tokens before{slots_.slots_.at(number).prepared.exchange(reach.count)};
  if (to < before) set(number, reach, before, Need::none);
  set(number, {}, reach, Need::guess);
  if (to.count != 0 && !slots_.ageing_) {
    slots_.pager_->age(slots_);
    slots_.ageing_ = true;
  }
  if (ready(number, to) < to) {
    std::lock_guard lock(slots_.due_mutex_);
    slots_.put_due(number);
    lacking_ = true;
  }
  return slots_.without_tail(slots_.room_in_pages_for(reach));
}

void Slots::Needs::take(std::uint32_t number, Tokens announced) {
  const Tokens reach = slots_.reach(announced);
  const Tokens prepared{slots_.slots_.at(number).prepared.exchange(0)};
  set(number, {}, reach, Need::announced);
  set(number, reach, prepared, Need::none);
}

bool Slots::age() {
  std::lock_guard ahead(ahead_mutex_);
  if (parts_.empty()) return false;  // closed
  Needs needs(*this);
  if (touched_.exchange(false)) return true;
  for (std::uint32_t number = 0; number < slots_.size(); ++number)
    needs.set(number, {}, {slots_[number].prepared.exchange(0)}, Need::none);
  ageing_ = false;
  return false;
}

/// Whether there is surely enough memory for what all these slots lack.
bool Slots::have_memory(std::span<const std::uint32_t> slots, Need need) const {
  Pages sum;
  for (std::uint32_t number : slots) sum += not_kept(slots_[number], wanted_for(slots_[number], need));
  return parts_.front().page_bytes() * sum.count <= pool().reclaiming().available(tenant(), need);
}

/// Lowers `at_most` by what it maps. Returns false when there is more to map than that.
bool Slots::map_ahead(std::span<const std::uint32_t> slots, Need need, Pages lookahead, Pages& at_most) {
  if (parts_.size() > 1 && slots.size() > 1 && !have_memory(slots, need)) {
    // The slots take turns. Else the first part of all slots would get the memory, and nobody could use it.
    for (const std::uint32_t& slot : slots)
      if (!map_ahead(std::span(&slot, 1), need, lookahead, at_most)) return false;
    return true;
  }
  MapOptions options;
  options.need = need;
  options.wait = false;
  for (const SlotPart& part : parts_) {
    std::vector<PageRange> ranges;
    for (std::uint32_t number : slots) {
      Slot& slot = slots_[number];
      const Tokens wanted = wanted_for(slot, need);
      slot.mapped_to = std::max(slot.mapped_to, wanted.count);
      part.append_pages(number, part.pages_for({slot.kept.load()}), part.pages_for(wanted) + lookahead,
                        ranges);
    }
    const MapResult result = map_what_fits(pool(), part.lease->reservation(), ranges, options, at_most);
    pool().counters().pages_mapped_ahead.add(result.mapped.count);
    at_most -= result.mapped;
    if (at_most.count == 0) return false;
  }
  return true;
}

/// Returns how many of the slots, in their order, together surely lack no more than so many pages of what is
/// announced; at least one.
std::size_t Slots::mappable(std::span<const std::uint32_t> slots, Pages at_most) const {
  std::size_t count = 0;
  for (Pages sum; count < slots.size(); ++count) {
    const Slot& slot = slots_[slots[count]];
    sum += not_kept(slot, wanted_for(slot, Need::announced));
    if (sum > at_most) break;
  }
  return std::max<std::size_t>(count, 1);
}

/// Notes that what was announced for these slots is mapped, and how late it is.
void Slots::note_mapped(std::span<const std::uint32_t> slots) {
  const Nanoseconds now = pool().clock().now();
  std::lock_guard lock(due_mutex_);
  for (std::uint32_t number : slots) {
    Slot& slot = slots_[number];
    if (slot.due || slot.asked == never) continue;  // more was announced meanwhile
    delay_ = std::max(delay_.load(), (now - std::exchange(slot.asked, never)).count());
  }
}

/// Nothing is announced but what is kept. The caller holds due_mutex_.
void Slots::announce_kept(std::uint32_t number) {
  slots_[number].announced = slots_[number].kept.load();
  covered_[number] = limits_[number];
}

/// Nothing is announced any more for the slot, beyond what is kept. Returns up to where pages may be needed
/// still: the caller ends that need after this, and what the pager maps meanwhile is seen to by the pager.
Tokens Slots::announce_no_more(std::uint32_t number) {
  Slot& slot = slots_.at(number);
  std::lock_guard lock(due_mutex_);
  const Tokens needed{std::max(slot.kept.load(), slot.announced.load())};
  announce_kept(number);
  return needed;
}

/// Nobody needs what was called off while it was mapped.
void Slots::settle() {
  const auto needed = [&](std::uint32_t number) {
    const Slot& slot = slots_[number];
    return std::max({slot.announced.load(), slot.prepared.load(), slot.aside.load()});
  };
  const auto called_off = [&](std::uint32_t number) { return needed(number) < slots_[number].mapped_to; };
  if (std::ranges::any_of(at_hand_, called_off)) {
    Needs needs(*this);
    for (const std::uint32_t number : at_hand_) {
      const Tokens from{needed(number)}, to{slots_[number].mapped_to};
      if (from < to) needs.set(number, from, to, Need::none);
    }
  }
  for (const std::uint32_t number : at_hand_) slots_[number].mapped_to = 0;
}

/// Moves due_ to at_hand_.
void Slots::take_due() {
  std::lock_guard lock(due_mutex_);
  for (std::uint32_t slot : due_) slots_[slot].due = false;
  at_hand_.clear();
  at_hand_.swap(due_);
}

/// Puts what is at hand back before what was announced meanwhile, because it was asked for first. Time in
/// which it cannot be mapped does not count as a delay.
void Slots::put_back(bool can_be_mapped) {
  std::lock_guard lock(due_mutex_);
  for (std::uint32_t slot : at_hand_) {
    slots_[slot].due = false;
    if (!can_be_mapped) slots_[slot].asked = never;
  }
  std::erase_if(due_, [&](std::uint32_t slot) { return !slots_[slot].due; });
  due_.insert(due_.begin(), at_hand_.begin(), at_hand_.end());
  for (std::uint32_t slot : at_hand_) slots_[slot].due = true;
}

/// Maps what is announced, and then what is prepared. What is announced will be used, so it may take memory
/// from what is prepared elsewhere; what is prepared may take only what nobody needs. Lowers `at_most` by
/// what it maps. Returns false when there is more to map than that.
bool Slots::map_wanted(std::span<const std::uint32_t> slots, Pages& at_most) {
  for (auto left = slots; !left.empty();) {
    const auto next = left.first(mappable(left, at_most));
    if (!map_ahead(next, Need::announced, {}, at_most)) return false;
    note_mapped(next);
    left = left.subspan(next.size());
  }
  return map_ahead(slots, Need::guess, {}, at_most);
}

Ahead Slots::map_ahead(Bytes batch, Pages lookahead) {
  std::lock_guard ahead(ahead_mutex_);
  if (parts_.empty()) return Ahead::done;  // closed
  take_due();
  if (at_hand_.empty()) return Ahead::done;
  Pages at_most{std::max<std::uint64_t>(1, batch / parts_.front().page_bytes())};
  const auto map = [&] {
    if (map_wanted(at_hand_, at_most)) return Ahead::done;
    put_back(true);
    return Ahead::more;
  };
  const Ahead result = ahead_of_need(pool(), map, [&] { put_back(false); });
  settle();
  if (result != Ahead::done || !options_.look_ahead) return result;
  // The look-ahead takes no memory from others. If it fails now, the next page asks for it again.
  if (map_ahead(at_hand_, Need::none, lookahead, at_most)) return Ahead::done;
  put_back(true);
  return Ahead::more;
}

}  // namespace vmm
