// Units that nobody is in, but whose tokens others may begin with.
//
// The owner of such a unit uses its pages in other ways, too: he maps them elsewhere, or unmaps them. So each
// of the two keeps his hands off while the other is at work: the owner holds the unit, and while a page is
// being copied it is kept, and hold() says no.
#include <algorithm>
#include <utility>

#include "engine/pager.h"
#include "engine/parking_needs.h"

namespace vmm {

void Parking::rest(UnitId id, Unit& one, Fence until) {
  enter_policy(id, one, {});
  one.until = std::move(until);
  one.use = ++last_use_;
  one.stuck = one.old = false;
  one.spare = true;
  one.next = 0;
  one.phase = Phase::idle;
  any_parked_ = true;
  set_need(one, [](const Page& page) { return page.copied; }, Need::none);
  set_need(one, [](const Page& page) { return !page.copied; }, Need::guess);
  if (!ageing_) pager_->age(*this);
  ageing_ = true;
}

/// Nothing more is copied of the unit until it is parked, or left, again.
void Parking::give_up_cleaning(Unit& one) {
  one.stuck = true;
  if (one.spare) set_need(one, every, Need::none);
}

/// What nobody has used for a while is copied, and then needed by nobody: so the pool gives it back.
bool Parking::age() {
  {
    const std::lock_guard lock(mutex_);
    ageing_ = false;
    for (auto& [id, one] : units_) {
      if (!one.spare || one.phase != Phase::idle || one.stuck || one.dirty == 0) continue;
      ageing_ = true;
      if (std::exchange(one.old, true) && can_clean(one) && !one.cleaning) choose_to_clean(id, one);
    }
    if (shut_ || !ageing_) return ageing_ = false;
  }
  notify();
  return true;
}

void Parking::leave(UnitId id, std::vector<ParkedPage> pages, Fence until) {
  {
    const std::lock_guard lock(mutex_);
    Unit& one = unit(id);
    carry_copies(one, std::move(pages));
    rest(id, one, std::move(until));
  }
  notify();
}

bool Parking::wind_up(UnitId id, Tokens held) {
  const std::lock_guard lock(mutex_);
  Unit& one = unit(id);
  one.urgent = one.no_memory = false;
  if (one.phase == Phase::wanted) one.phase = Phase::idle;
  if (one.moving != 0 || one.mapping) return false;
  unmap_foreign(one);
  leave_policy(id);
  one.phase = Phase::running;
  one.failure = nullptr;
  one.lost.reset();
  for (Page& page : one.pages) {
    page.away = page.mapped = page.foreign = false;
    if (page.at.first >= held) forget_copy(page);
  }
  return true;
}

bool Parking::hold(UnitId id) {
  const std::lock_guard lock(mutex_);
  Unit& one = unit(id);
  if (one.moving != 0) return false;
  one.phase = Phase::running;
  leave_policy(id);
  return true;
}

void Parking::release(UnitId id, Fence until) {
  {
    const std::lock_guard lock(mutex_);
    rest(id, unit(id), std::move(until));
  }
  notify();
}

Tokens Parking::saved(UnitId id, Tokens length, bool on_device) {
  const std::lock_guard lock(mutex_);
  const Pool::Needs needs(pool());
  const auto found = units_.find(id);
  if (found == units_.end() || found->second.phase == Phase::forgotten) return {};
  const Unit& one = found->second;
  if (one.lost) length = std::min(length, *one.lost);
  for (const Page& page : one.pages)
    if (page.at.first < length && !page.copied && !(on_device && resident(needs, page)))
      length = page.at.first;
  return length;
}

bool Parking::adopt(UnitId id, Tokens length) {
  const std::lock_guard lock(mutex_);
  Unit& one = unit(id);
  // 1. What has no copy must be there, and stay.
  const auto without_copy = [&](const Page& page) { return page.at.first < length && !page.copied; };
  {
    Pool::Needs needs(pool());
    const auto there = [&](const Page& page) { return !without_copy(page) || resident(needs, page); };
    if (!std::ranges::all_of(one.pages, there)) return false;
    const Ranges dirty = ranges(one, without_copy);
    if (!needs.may_keep(dirty)) return false;
    for (const auto& [reservation, pages] : dirty) needs.set(*reservation, pages, Need::kept);
  }
  // 2. What comes after it is somebody else's, or nobody's.
  const auto beyond = [&](const Page& page) { return page.at.first >= length; };
  for (Page& page : one.pages)
    if (beyond(page)) forget_copy(page);
  std::erase_if(one.pages, beyond);
  one.dirty = static_cast<std::uint32_t>(std::ranges::count(one.pages, false, &Page::copied));
  one.spare = false;
  one.phase = Phase::idle;
  one.next = 0;
  any_parked_ = true;
  return true;
}

bool Parking::share_copies(UnitId from, Tokens length, UnitId to, std::vector<ParkedPage> pages) {
  const std::lock_guard lock(mutex_);
  std::vector<Page> copies;
  copies.reserve(pages.size());
  for (const Page& page : unit(from).pages) {
    if (page.at.first >= length) continue;
    if (!page.copied) return false;
    copies.push_back({.at = pages.at(copies.size()), .place = page.place, .copied = true, .foreign = true});
  }
  std::size_t shared = 0;
  try {
    for (; shared < copies.size(); ++shared) ++shared_[key_of(copies[shared].place)];
  } catch (...) {
    for (std::size_t i = 0; i < shared; ++i) give_back(copies[i].place);
    throw;
  }
  Unit& one = unit(to);
  one.pages = std::move(copies);
  one.phase = Phase::idle;
  any_parked_ = true;
  return true;
}

/// What cannot be had again if somebody takes it: pages of spare units without a copy, which count as memory
/// to be had.
Bytes Parking::unsaved() const {
  Bytes sum;
  for (const auto& [id, one] : units_)
    if (one.spare && one.phase == Phase::idle && !one.stuck)
      sum += page_bytes_ * (one.dirty - std::min(one.dirty, one.moving));
  return sum;
}

/// A page of a spare unit must stay while it is copied. False where somebody has taken it, or it cannot be
/// kept.
bool Parking::keep_to_clean(Unit& one, Page& page) {
  const PageRange range{page.at.page, {1}};
  {
    Pool::Needs needs(pool());
    if (!resident(needs, page)) {
      page.gone = true;
      --one.dirty;
      return false;
    }
    if (needs.may_keep(*page.at.reservation, std::span(&range, 1))) {
      needs.set(*page.at.reservation, std::span(&range, 1), Need::kept);
      return true;
    }
  }
  give_up_cleaning(one);  // which looks at the pool, too
  return false;
}

/// The tiers are full. Of the spare units the one that was used longest ago gives up its copies for `other`.
/// Returns whether there was any; a spare one gets no place of one that was used later.
bool Parking::take_copies_of_spare(const Unit& other) {
  Unit* oldest = nullptr;
  for (auto& [id, one] : units_)
    if (one.spare && &one != &other && (!other.spare || one.use < other.use) &&
        (oldest == nullptr || one.use < oldest->use) && std::ranges::any_of(one.pages, &Page::copied))
      oldest = &one;
  if (oldest == nullptr) return false;
  oldest->next = 0;  // where it is being cleaned, that begins anew
  forget_copies(*oldest);
  if (!oldest->stuck) set_need(*oldest, [](const Page& page) { return !page.copied; }, Need::guess);
  return true;
}

}  // namespace vmm
