// What slots will need: announced by their owner, mapped by the pager.
#include <algorithm>
#include <utility>

#include "engine/pager.h"
#include "engine/slots.h"

namespace vmm {

Tokens Slots::covered(std::uint32_t number) const {
  std::lock_guard lock(due_mutex_);
  const std::uint64_t covered = slots_.at(number).covered;
  return {covered - std::min(covered, tail_.count)};
}

void Slots::announce(std::uint32_t slot, Tokens to) {
  const SlotLength coming{slot, to};
  announce(std::span(&coming, 1));
}

void Slots::announce(std::span<const SlotLength> coming) {
  for (const SlotLength& each : coming) check_length("to", each.length);
  bool more = false;
  {
    std::lock_guard lock(due_mutex_);
    for (const SlotLength& each : coming) {
      Slot& slot = slots_.at(each.slot);
      if (reach(each.length).count <= slot.covered) continue;
      slot.announced = reach(each.length).count;
      slot.covered = held_by_pages_for(reach(each.length)).count;
      put_due(each.slot);
      more = true;
    }
  }
  if (more) pager_->notify(*this);
}

void Slots::put_due(std::uint32_t slot) {
  if (due_.empty() || std::exchange(starved_, false)) due_since_ = pool().clock().now();
  if (!std::exchange(slots_.at(slot).due, true)) due_.push_back(slot);
}

Tokens Slots::prepare(std::uint32_t number, Tokens to) {
  check_length("to", to);
  const Tokens before{slots_.at(number).prepared.exchange(reach(to).count)};
  if (to < before) set_need(number, reach(to), before, Need::none);
  set_need(number, {}, reach(to), Need::guess);
  const Tokens held = held_by_pages_for(reach(to));
  if (ready(number, to) < to) {
    {
      std::lock_guard lock(due_mutex_);
      put_due(number);
    }
    pager_->notify(*this);
  }
  return held - std::min(held, tail_);
}

/// Of the pages for tokens [from, to) that are there.
void Slots::set_need(std::uint32_t slot, Tokens from, Tokens to, Need need) {
  for (const SlotPart& part : parts_) {
    std::vector<PageRange> ranges;
    part.append_pages(slot, part.pages_for(from), part.pages_for(to), ranges);
    pool().set_need(part.lease->reservation(), ranges, need);
  }
}

Tokens Slots::ready(std::uint32_t slot, Tokens at_most) const {
  Tokens tokens = reach(at_most);
  std::vector<PageRange> extents;
  for (const SlotPart& part : parts_) {
    extents.clear();
    part.append_pages(slot, {}, part.pages_for(reach(at_most)), extents);
    for (const PageRange& extent : extents)
      tokens = std::min(tokens, part.held_by(pool().resident(part.lease->reservation(), extent)));
  }
  return tokens - std::min(tokens, tail_);
}

void Slots::take(std::uint32_t number, Tokens announced) {
  const Tokens prepared{slots_.at(number).prepared.exchange(0)};
  set_need(number, {}, reach(announced), Need::announced);
  set_need(number, reach(announced), prepared, Need::none);
  announce(number, announced);
}

/// Maps up to `at_most` pages; where there is no memory for so many, lowers that.
MapResult Slots::map_what_fits(Lease& lease, std::span<const PageRange> ranges, MapOptions& options,
                               Pages& at_most) {
  for (;;) {
    options.at_most = at_most;
    try {
      return pool().map(lease.reservation(), ranges, options);
    } catch (const OutOfPages&) {
      if (at_most.count == 1) throw;
      at_most = {at_most.count / 2};
    }
  }
}

/// False when there is more to map than `at_most`, which it lowers.
bool Slots::map_ahead(std::span<const std::uint32_t> slots, Need need, Pages lookahead, Pages& at_most) {
  MapOptions options;
  options.need = need;
  options.wait = false;
  for (const SlotPart& part : parts_) {
    std::vector<PageRange> ranges;
    for (std::uint32_t number : slots) {
      const Slot& slot = slots_[number];
      const std::uint64_t to = need == Need::guess ? slot.prepared.load() : slot.announced.load();
      part.append_pages(number, part.pages_for({slot.kept.load()}), part.pages_for({to}) + lookahead, ranges);
    }
    const MapResult result = map_what_fits(*part.lease, ranges, options, at_most);
    pool().counters().pages_mapped_ahead.add(result.mapped.count);
    at_most -= result.mapped;
    if (at_most.count == 0) return false;
  }
  return true;
}

Ahead Slots::map_ahead(Bytes batch, Pages lookahead) {
  std::lock_guard ahead(ahead_mutex_);
  if (parts_.empty()) return Ahead::done;  // closed
  std::vector<std::uint32_t> slots;
  Nanoseconds since;
  {
    std::lock_guard lock(due_mutex_);
    if (due_.empty()) return Ahead::done;
    since = std::exchange(starved_, false) ? pool().clock().now() : due_since_;
    slots.swap(due_);
    for (std::uint32_t slot : slots) slots_[slot].due = false;
  }
  // What is announced will be used, so it may cost others what they do not need; what is prepared, what
  // nobody has prepared; the look-ahead nothing, and it is asked for again with the next page.
  Pages at_most{std::max<std::uint64_t>(1, batch / parts_.front().page_bytes())};
  Need need = Need::announced;
  bool starved = false;
  try {
    if (map_ahead(slots, need, {}, at_most)) {
      const Nanoseconds now = pool().clock().now();
      delay_ = std::max(delay_.load(), (now - std::exchange(since, now)).count());
      need = Need::guess;
      if (map_ahead(slots, need, {}, at_most)) {
        need = Need::none;
        if (!look_ahead_ || map_ahead(slots, need, lookahead, at_most)) return Ahead::done;
      }
    }
  } catch (const OutOfPages& error) {
    if (need == Need::none) throw;
    pool().log().write(LogLevel::debug, error.what());
    starved = true;
  }
  std::lock_guard lock(due_mutex_);
  const bool alone = due_.empty();
  if (alone) due_since_ = since;
  for (std::uint32_t slot : slots) put_due(slot);
  starved_ = starved && alone;
  return starved ? Ahead::starved : Ahead::more;
}

}  // namespace vmm
