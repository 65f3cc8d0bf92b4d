// Pages of parked units on their way back to the device.
#include <algorithm>
#include <exception>
#include <tuple>
#include <utility>

#include "base/error.h"
#include "engine/parking_needs.h"

namespace vmm {

/// Keeps what is on the device, and notes what is not.
Parking::Kept Parking::keep_resident(Unit& one) {
  Pool::Needs needs(pool());
  const Ranges there = ranges(one, [&](const Page& page) { return resident(needs, page); });
  if (!needs.may_keep(there)) return Kept::refused;
  for (const auto& [reservation, pages] : there) needs.set(*reservation, pages, Need::kept);
  bool all = true;
  for (Page& page : one.pages) {
    page.away = !resident(needs, page);
    page.mapped = false;
    all &= !page.away;
  }
  return all ? Kept::all : Kept::some;
}

void Parking::begin_load(Unit& one) {
  const Kept kept = keep_resident(one);
  if (kept == Kept::refused) return give_up(one);
  one.phase = Phase::loading;
  one.next = 0;
  one.began = pool().clock().now();
  if (kept == Kept::all) finish_load(one);
}

/// Units that are wanted are loaded in the order of this: an urgent one first if there is any, of these one
/// that was begun, and of these the one that is wanted first.
std::tuple<bool, bool, Nanoseconds> Parking::turn(const Unit& one) {
  return {!one.urgent, one.phase != Phase::loading, one.by};
}

Parking::Units::iterator Parking::next_wanted() {
  auto best = units_.end();
  for (auto each = units_.begin(); each != units_.end(); ++each) {
    const Unit& one = each->second;
    const bool to_map = one.phase == Phase::loading && one.next < one.pages.size() && !one.failure;
    if ((one.phase != Phase::wanted || one.moving != 0) && !to_map) continue;
    if (best == units_.end() || turn(one) < turn(best->second)) best = each;
  }
  return best;
}

void Parking::add_what_is_away(const Unit& one, std::vector<Bytes>& by_tier) const {
  const Pool::Needs needs(pool());
  for (const Page& page : one.pages)
    if (page.copied && (one.phase == Phase::loading ? page.away : !resident(needs, page)))
      by_tier.at(page.place.tier) += page_bytes_;
}

std::optional<Nanoseconds> Parking::load_time(UnitId id) {
  const std::lock_guard lock(mutex_);
  const Unit& one = unit(id);
  std::vector<Bytes> by_tier(rates_.size());
  if (one.phase != Phase::running) add_what_is_away(one, by_tier);
  if (std::ranges::count(by_tier, Bytes{}) == std::ssize(by_tier)) return Nanoseconds{};
  for (const auto& [other_id, other] : units_) {
    const bool wanted = other.phase == Phase::wanted || other.phase == Phase::loading;
    if (other_id != id && wanted && (one.phase == Phase::idle || turn(other) < turn(one)))
      add_what_is_away(other, by_tier);
  }
  Nanoseconds longest{};
  for (std::size_t tier = 0; tier < by_tier.size(); ++tier) {
    if (by_tier[tier].count == 0) continue;
    const std::optional<Nanoseconds> time = rates_[tier].time_for(by_tier[tier]);
    if (!time) return std::nullopt;
    longest = std::max(longest, *time);
  }
  return longest;
}

/// One unit at a time gets its memory: two that have half of theirs each would wait for each other.
void Parking::load(Lock& lock, Bytes batch, Left& left) {
  for (auto& [id, one] : units_)
    if (one.phase == Phase::loading) read_mapped(id, one);
  const auto next = next_wanted();
  if (next == units_.end() || room() == 0) return;  // the next end of a transfer wakes us
  Unit& one = next->second;
  if (await_memory(one, left)) return;
  if (one.phase == Phase::wanted) begin_load(one);
  if (one.phase == Phase::wanted)
    left.starved = true;  // its tenant may not keep so much now
  else
    left.more = one.phase != Phase::loading || map_some(lock, next->first, batch, left);
}

/// Maps the next pages of the unit, without the lock, and begins to read them. Returns whether it is of use
/// to go on at once.
bool Parking::map_some(Lock& lock, UnitId id, Bytes batch, Left& left) {
  Unit& one = unit(id);
  const std::uint64_t at_most = std::clamp<std::uint64_t>(batch / page_bytes_, 1, room());
  std::vector<std::uint32_t> some;
  for (std::uint32_t i = one.next; i < one.pages.size() && some.size() < at_most; ++i)
    if (one.pages[i].away && !one.pages[i].mapped) some.push_back(i);
  std::vector<std::pair<Reservation*, PageRange>> pages;
  for (const std::uint32_t i : some)
    pages.push_back({one.pages[i].at.reservation, {one.pages[i].at.page, {1}}});
  // 1. Without the lock: the driver is called. What is not kept others may take again, but they cannot wait
  // for us, nor we for them.
  MapOptions options;
  options.need = one.urgent ? Need::kept : Need::announced;
  options.wait = false;
  one.mapping = true;
  lock.unlock();
  std::exception_ptr failure;
  bool starved = false;
  try {
    for (std::size_t i = 0; i < pages.size();) {
      std::vector<PageRange> ranges;
      Reservation* const reservation = pages[i].first;
      for (; i < pages.size() && pages[i].first == reservation; ++i) ranges.push_back(pages[i].second);
      pool().map(*reservation, ranges, options);
    }
  } catch (const OutOfPages&) {
    starved = true;
  } catch (...) {
    failure = std::current_exception();
  }
  lock.lock();
  one.mapping = false;
  if (one.phase == Phase::forgotten) {
    end_of_transfer(id, one);
    return false;
  }
  // 2. What is there now is kept, and read.
  bool all = true;
  {
    Pool::Needs needs(pool());
    for (const std::uint32_t i : some) {
      Page& page = one.pages[i];
      const PageRange range{page.at.page, {1}};
      page.mapped = mapped(needs, page) && needs.may_keep(*page.at.reservation, std::span(&range, 1));
      if (page.mapped) needs.set(*page.at.reservation, std::span(&range, 1), Need::kept);
      all &= page.mapped;
    }
  }
  while (one.next < one.pages.size() && (!one.pages[one.next].away || one.pages[one.next].mapped)) ++one.next;
  one.failure = failure;
  read_mapped(id, one);
  // 3. What has failed ends when nothing moves any more.
  if (one.phase != Phase::loading || failure) return false;
  if (starved)
    starve(one, page_bytes_ * some.size(), left);
  else
    left.later |= !all;
  return !starved && all && one.next < one.pages.size();
}

/// Whether the unit must wait for memory, or is given up because none will come.
bool Parking::await_memory(Unit& one, Left& left) {
  const bool begun = one.phase == Phase::loading;
  std::uint64_t missing = 0, surplus = 0;  // pages; what is there, and is needed by nobody, is not to be had
  {
    const Pool::Needs needs(pool());
    for (const Page& page : one.pages) {
      const bool there = resident(needs, page);
      missing += !there;
      surplus += there && !begun && page.copied;
    }
  }
  if (missing == 0) return false;
  const Tenant& tenant = one.pages.front().at.reservation->tenant;
  const Bytes needed = page_bytes_ * (missing + surplus);
  const Need whose = one.urgent ? Need::kept : Need::announced;
  Bytes available = pool().reclaiming().available(tenant, whose);
  if (available >= needed) return false;
  if (!one.urgent && displace(one, needed - available)) {
    available = pool().reclaiming().available(tenant, whose);
    if (available >= needed) return false;
  }
  starve(one, needed - available, left);
  return true;
}

/// What the pool can take of the unit, which is there, when it is not wanted any more.
Bytes Parking::given_up_by(const Unit& one) {
  const Pool::Needs needs(pool());
  return page_bytes_ * static_cast<std::uint64_t>(std::ranges::count_if(one.pages, [&](const Page& page) {
           return page.copied && resident(needs, page);
         }));
}

/// The unit lacks so much, and must not wait behind those that are wanted later but happened to be there: of
/// these, the last ones give up what has a copy. They are ready as long as nobody takes it. False, and
/// nothing has changed, where that would not be enough.
bool Parking::displace(const Unit& one, Bytes lacking) {
  std::vector<Unit*> later;
  Bytes all;
  for (auto& [id, other] : units_)
    if (other.phase == Phase::there && !other.urgent && other.moving == 0 && other.by > one.by) {
      later.push_back(&other);
      all += given_up_by(other);
    }
  if (all < lacking) return false;
  std::ranges::sort(later, {}, [](const Unit* each) { return each->by; });
  while (lacking.count != 0) {
    Unit& last = *later.back();
    later.pop_back();
    lacking -= std::min(lacking, given_up_by(last));
    last.phase = Phase::wanted;
    put_back(last);
  }
  return true;
}

/// The unit lacks so much memory. It waits for what is being cleaned, or unmapped; where that is nothing, it
/// is given up.
void Parking::starve(Unit& one, Bytes lacking, Left& left) {
  if (any_to_clean()) {
    demand(lacking);
    left.later = true;
    return;
  }
  if (pool().reclaiming().coming().count != 0) {
    left.later = true;
    return;
  }
  // An attempt to map, or what is given up here, would wake whoever starves: so ourselves, again and again,
  // while nothing else changes.
  const bool ahead = !one.urgent && one.phase != Phase::loading;
  (ahead ? left.starved : left.later) = true;
  if (ahead || one.moving != 0) return;
  // Others that are loaded ahead must not have what this one lacks. When memory is given up they begin anew.
  if (one.urgent)
    for (auto& [id, other] : units_)
      if (other.phase == Phase::loading && !other.urgent && other.moving == 0) {
        give_up(other);
        left.more = true;
        return;
      }
  give_up(one);
}

/// Begins to read what is mapped for that, as far as there is room among what is under way.
void Parking::read_mapped(UnitId id, Unit& one) {
  bool any_left = false;
  for (std::uint32_t i = 0; i < one.pages.size(); ++i) {
    Page& page = one.pages[i];
    if (!page.away || page.moving) continue;
    any_left = true;
    if (!page.mapped || room() == 0 || one.failure) continue;
    try {
      if (!submit(TransferKind::read, id, i)) return;
    } catch (const Closed&) {
      read(one, page, Outcome::closed);
    }
  }
  if (one.moving != 0) return;
  if (one.failure)
    give_up(one);
  else if (!any_left)
    finish_load(one);
}

void Parking::finish_load(Unit& one) {
  figures_.loads += one.reads;
  one.reads = false;
  figures_.loading += pool().clock().now() - one.began;
  one.phase = Phase::there;
  one.next = 0;  // where it is being cleaned, that goes on
  moved_.notify_all();
  if (one.urgent) return;
  set_aside(one, [](const Page& page) { return page.copied; }, Need::announced);
}

/// The unit, which no transfer touches, is not loaded now. Who wanted it urgently hears of it; else it is
/// wanted still.
void Parking::give_up(Unit& one) {
  one.no_memory = one.urgent && !one.failure;
  if (!one.urgent && one.failure) failure_ = std::exchange(one.failure, nullptr);  // it is tried again later
  one.phase = one.urgent ? Phase::idle : Phase::wanted;
  one.urgent = false;
  one.next = 0;  // where it is being cleaned, that goes on
  unmap(one, [](const Page& page) { return page.away; });
  for (Page& page : one.pages) page.away = page.mapped = false;
  put_back(one);
  moved_.notify_all();
}

}  // namespace vmm
