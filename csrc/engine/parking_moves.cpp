// Pages of parked units on their way down to the tiers, and back.
#include <algorithm>
#include <array>
#include <exception>
#include <tuple>
#include <utility>

#include "base/error.h"
#include "engine/pager.h"
#include "engine/parking.h"

namespace vmm {
namespace {

constexpr std::uint64_t reserve_fraction_to_clean = 16;  // of the budget is kept free, or clean
constexpr std::uint8_t most_failures = 3;                // to write a page, each in another place

/// Names a page of a unit to the tiers.
std::uint64_t tag_of(UnitId unit, std::uint32_t page) {
  return static_cast<std::uint64_t>(unit) << 32 | page;
}

}  // namespace

Ahead Parking::map_ahead(Bytes batch, Pages) {
  Left left;
  std::vector<std::shared_ptr<void>> orphans;  // whose end takes locks, so it comes after ours is given back
  const auto work = [&] {
    pool().epochs().poll();
    Lock lock(mutex_);
    if (shut_) return Ahead::done;
    // 1. What has ended makes room for what comes.
    collect();
    // 2. Whoever is wanted back comes first.
    load(lock, batch, left);
    // 3. What is left of the tiers' time goes to cleaning, where memory is short.
    choose_victims();
    clean(left);
    orphans.swap(orphans_);
    if (left.more) return Ahead::more;
    if (left.starved) return Ahead::starved;
    return left.later ? Ahead::later : Ahead::done;
  };
  return ahead_of_need(pool(), work, [] {});
}

// What has ended.

void Parking::collect() {
  std::array<Tiers::Ended, 64> ends;
  std::vector<UnitId> touched;
  while (const std::size_t got = tiers_->poll(ends)) {
    for (std::size_t i = 0; i < got; ++i) {
      const UnitId id{ends[i].tag >> 32};
      Unit& one = unit(id);
      Page& page = one.pages[static_cast<std::uint32_t>(ends[i].tag)];
      --in_flight_;
      --one.moving;
      page.moving = false;
      page.away ? read(one, page, ends[i].outcome) : written(one, page, ends[i].outcome);
      if (touched.empty() || touched.back() != id) touched.push_back(id);
    }
  }
  for (const UnitId id : touched)
    if (const auto found = units_.find(id); found != units_.end()) end_of_transfer(id, found->second);
  if (!touched.empty()) moved_.notify_all();
}

void Parking::written(Unit& one, Page& page, Outcome outcome) {
  if (outcome == Outcome::done) {
    page.copied = page.cleaned = true;
    --one.dirty;
    ++figures_.cleaned;
    demanded_ -= std::min(demanded_, page_bytes_);
    return;
  }
  tiers_->give_back(page.place);
  if (++page.failures >= most_failures) one.stuck = true;
  one.next = std::min(one.next, static_cast<std::uint32_t>(&page - one.pages.data()));
}

void Parking::read(Unit& one, Page& page, Outcome outcome) {
  page.away = page.mapped = false;
  if (outcome == Outcome::done) {
    ++figures_.loaded;
    return;
  }
  ++figures_.lost;
  one.lost = std::min(one.lost.value_or(page.at.first), page.at.first);
  forget_copy(page);
  ++one.dirty;  // what is there now is all there is
}

/// Something of the unit has moved, or was mapped. One that is forgotten ends with the last such thing.
void Parking::end_of_transfer(UnitId id, Unit& one) {
  if (cleanable(one)) set_aside(one, [](const Page& page) { return page.cleaned && page.copied; });
  for (Page& page : one.pages) page.cleaned = false;
  if (one.moving != 0 || one.mapping || one.phase != Phase::forgotten) return;
  for (Page& page : one.pages) forget_copy(page);
  std::erase(cleaning_, id);
  orphans_.push_back(std::move(one.owner));
  units_.erase(id);
}

// Back to the device.

/// Keeps what is on the device, and notes what is not.
Parking::Kept Parking::keep_resident(Unit& one) {
  Pool::Needs needs(pool());
  const auto resident = [&](const Page& page) {
    return needs.resident(*page.at.reservation, {page.at.page, {1}}).count == 1;
  };
  const Ranges there = ranges(one, resident);
  for (const auto& [reservation, pages] : there)
    if (!needs.may_keep(*reservation, pages)) return Kept::refused;
  for (const auto& [reservation, pages] : there) needs.set(*reservation, pages, Need::kept);
  bool all = true;
  for (Page& page : one.pages) {
    page.away = !resident(page);
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
  if (kept == Kept::all) return finish_load(one);
  ++figures_.loads;
}

/// Of the units that are wanted, the one to load next: an urgent one if there is any, of these one that was
/// begun, and of these the one that is wanted first.
Parking::Units::iterator Parking::next_wanted() {
  const auto rank = [](const Unit& one) {
    return std::tuple(!one.urgent, one.phase != Phase::loading, one.by);
  };
  auto best = units_.end();
  for (auto each = units_.begin(); each != units_.end(); ++each) {
    const Unit& one = each->second;
    const bool to_map = one.phase == Phase::loading && one.next < one.pages.size() && !one.failure;
    if ((one.phase != Phase::wanted || one.moving != 0) && !to_map) continue;
    if (best == units_.end() || rank(one) < rank(best->second)) best = each;
  }
  return best;
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
      page.mapped = needs.resident(*page.at.reservation, range).count != 0 &&
                    needs.may_keep(*page.at.reservation, std::span(&range, 1));
      if (page.mapped) needs.set(*page.at.reservation, std::span(&range, 1), Need::kept);
      all &= page.mapped;
    }
  }
  while (one.next < one.pages.size() && (!one.pages[one.next].away || one.pages[one.next].mapped)) ++one.next;
  one.failure = failure;
  read_mapped(id, one);
  // 3. What has failed ends when nothing moves any more.
  if (failure && one.phase != Phase::loading && !one.failure) std::rethrow_exception(failure);
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
      const bool resident = needs.resident(*page.at.reservation, {page.at.page, {1}}).count == 1;
      missing += !resident;
      surplus += resident && !begun && page.copied;
    }
  }
  if (missing == 0) return false;
  const Tenant& tenant = one.pages.front().at.reservation->tenant;
  const Bytes needed = page_bytes_ * (missing + surplus);
  const Bytes available = pool().reclaiming().available(tenant, one.urgent ? Need::kept : Need::announced);
  if (available >= needed) return false;
  starve(one, needed - available, left);
  return true;
}

/// The unit lacks so much memory. It waits for what is being cleaned; where that is nothing, it is given up.
void Parking::starve(Unit& one, Bytes lacking, Left& left) {
  if (any_to_clean()) {
    demanded_ = std::max(demanded_, lacking);
    left.later = true;
    return;
  }
  left.starved = true;
  if (one.moving != 0) return;
  // Others that are loaded ahead must not have what this one lacks. When memory is given up they begin anew.
  if (one.urgent)
    for (auto& [id, other] : units_)
      if (other.phase == Phase::loading && !other.urgent && other.moving == 0) {
        give_up(other);
        left.more = true;
        return;
      }
  if (one.urgent || one.phase == Phase::loading) give_up(one);
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
  figures_.loading += pool().clock().now() - one.began;
  one.phase = Phase::there;
  moved_.notify_all();
  if (one.urgent) return;
  const auto copied = [](const Page& page) { return page.copied; };
  set_aside(one, copied);
  for (const auto& [reservation, pages] : ranges(one, copied))
    Pool::Needs(pool()).set(*reservation, pages, Need::announced);
}

/// The unit, which no transfer touches, is not loaded now. Who wanted it urgently hears of it; else it is
/// wanted still.
void Parking::give_up(Unit& one) {
  one.no_memory = one.urgent && !one.failure;
  if (!one.urgent) one.failure = nullptr;  // it is in the log, and the load is tried again
  one.phase = one.urgent ? Phase::idle : Phase::wanted;
  one.urgent = false;
  const auto unread = [](const Page& page) { return page.away && page.mapped; };
  for (const auto& [reservation, pages] : ranges(one, unread)) pool().retire(*reservation, pages, {});
  for (Page& page : one.pages) page.away = page.mapped = false;
  put_back(one);
  moved_.notify_all();
}

/// Whether it would be cleaned, if it were chosen: what is wanted ahead has no memory yet, or gives it to
/// others who need it more.
bool Parking::cleanable(const Unit& one) {
  const bool ahead = one.phase == Phase::wanted || one.phase == Phase::there;
  return one.phase == Phase::idle || (ahead && !one.urgent);
}

// Down to the tiers.

/// Has as many units cleaned as memory is short of.
void Parking::choose_victims() {
  const Bytes reserve = pool().budget().limit() / reserve_fraction_to_clean;
  Bytes lacking = demanded_;
  if (!units_.empty()) {
    const auto some =
        std::ranges::find_if(units_, [](const auto& each) { return !each.second.pages.empty(); });
    if (some == units_.end()) return;
    const Tenant& tenant = some->second.pages.front().at.reservation->tenant;
    const Bytes available = pool().reclaiming().available(tenant, Need::announced);
    lacking = std::max(lacking, reserve - std::min(reserve, available));
  }
  for (const UnitId id : cleaning_)
    if (!pool().epochs().waits_for_open_epoch(unit(id).until))  // who knows when that is closed
      lacking -= std::min(lacking, page_bytes_ * unit(id).dirty);
  while (lacking.count != 0) {
    const std::optional<UnitId> victim = next_victim();
    if (!victim) return;
    Unit& one = unit(*victim);
    one.cleaning = true;
    one.next = 0;
    cleaning_.push_back(*victim);
    lacking -= std::min(lacking, page_bytes_ * one.dirty);
  }
}

/// The unit that is to be cleaned next: the policy's choice; or else one that was chosen before, but was
/// wanted back then; or else one that is wanted ahead.
std::optional<UnitId> Parking::next_victim() {
  const auto to_clean = [&](UnitId id) { return can_clean(unit(id)) && !unit(id).cleaning; };
  while (const std::optional<UnitId> victim = policy_->victim(pool().clock().now())) {
    policy_->evicted(*victim);
    if (to_clean(*victim)) return victim;
  }
  std::optional<UnitId> ahead;
  for (const auto& [id, one] : units_) {
    if (!to_clean(id)) continue;
    if (one.phase == Phase::idle) return id;
    if (!ahead) ahead = id;
  }
  return ahead;
}

void Parking::clean(Left& left) {
  for (std::size_t i = 0; i < cleaning_.size() && room() != 0;) {
    Unit& one = unit(cleaning_[i]);
    if (!clean(cleaning_[i], one, left)) {
      ++i;
      continue;
    }
    one.cleaning = false;
    cleaning_.erase(cleaning_.begin() + static_cast<std::ptrdiff_t>(i));
  }
  if (!cleaning_.empty()) return;
  for (const TierPlace& place : places_) tiers_->give_back(place);
  places_.clear();
  if (!any_to_clean()) demanded_ = {};
}

/// Begins to copy pages of the unit. Returns whether nothing is left to do for it.
bool Parking::clean(UnitId id, Unit& one, Left& left) {
  if (!cleanable(one) || one.dirty == 0 || one.stuck) return true;
  if (!pool().epochs().complete(one.until)) {
    // Whoever closes an epoch wakes us.
    left.later |= !pool().epochs().waits_for_open_epoch(one.until);
    return false;
  }
  for (; one.next < one.pages.size() && room() != 0; ++one.next) {
    Page& page = one.pages[one.next];
    if (page.copied || page.moving) continue;
    if (!take_places()) return false;
    page.place = places_.back();
    if (!submit(TransferKind::write, id, one.next)) return false;
    places_.pop_back();
  }
  return false;
}

/// Begins to move a page. False where the tiers take no more now.
bool Parking::submit(TransferKind kind, UnitId id, std::uint32_t number) {
  Unit& one = unit(id);
  Page& page = one.pages[number];
  const Address address = page.at.reservation->address_of(page.at.page);
  if (!tiers_->submit(kind, page.place, reinterpret_cast<std::byte*>(address.value), tag_of(id, number)))
    return false;
  page.moving = true;
  ++one.moving;
  ++in_flight_;
  return true;
}

/// Makes sure that there are places for what is cleaned next. False where there are none.
bool Parking::take_places() {
  if (!places_.empty()) return true;
  places_ = tiers_->take(room());
  if (places_.empty() && take_copies_of_running()) places_ = tiers_->take(room());
  std::ranges::reverse(places_);  // they are used from the end, and those in order are written together
  return !places_.empty();
}

/// The tiers are full. Copies of what runs are of use only when that is parked again. Returns whether there
/// were any.
bool Parking::take_copies_of_running() {
  bool any = false;
  for (auto& [id, one] : units_) {
    if (one.phase != Phase::running) continue;
    for (Page& page : one.pages) {
      any |= page.copied;
      forget_copy(page);
    }
  }
  return any;
}

}  // namespace vmm
