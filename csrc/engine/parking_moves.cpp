// A piece of the pager's work for what is parked, the transfers it begins and ends, and the copies it knows.
// What is loaded is in parking_load.cpp, and what is cleaned in parking_clean.cpp.
#include <algorithm>
#include <array>
#include <exception>
#include <utility>

#include "base/error.h"
#include "engine/pager.h"
#include "engine/parking_needs.h"

namespace vmm {
namespace {

constexpr std::uint8_t most_failures = 3;  // to write a page, each in another place

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
    if (failure_) std::rethrow_exception(std::exchange(failure_, nullptr));
    if (left.more) return Ahead::more;
    if (left.starved) return Ahead::starved;
    return left.later ? Ahead::later : Ahead::done;
  };
  return ahead_of_need(pool(), work, [] {});
}

void Parking::collect() {
  std::array<Tiers::Ended, 64> ends;
  std::vector<UnitId> touched;
  while (const std::size_t got = tiers_->poll(ends)) {
    moved_at_ = pool().clock().now();
    for (std::size_t i = 0; i < got; ++i) {
      const UnitId id{ends[i].tag >> 32};
      Unit& one = unit(id);
      Page& page = one.pages[static_cast<std::uint32_t>(ends[i].tag)];
      --in_flight_;
      --one.moving;
      page.moving = false;
      if (page.away)
        rates_[page.place.tier].ended(moved_at_, ends[i].outcome == Outcome::done ? page_bytes_ : Bytes{});
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
  page.cleaned = one.spare;
  if (++page.failures >= most_failures) give_up_cleaning(one);
  one.next = std::min(one.next, static_cast<std::uint32_t>(&page - one.pages.data()));
}

void Parking::read(Unit& one, Page& page, Outcome outcome) {
  if (outcome == Outcome::device) {  // its copy is as good as before: only this load fails
    one.failure = std::make_exception_ptr(
        DriverError("a page of a parked sequence could not be copied to the device; the log says why"));
    return;
  }
  page.away = page.mapped = page.foreign = false;
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
  if (cleanable(one) || one.spare)
    set_aside(one, [](const Page& page) { return page.cleaned && page.copied; });
  if (one.spare)
    set_aside(
        one, [](const Page& page) { return page.cleaned && !page.copied; },
        one.stuck ? Need::none : Need::guess);
  for (Page& page : one.pages) page.cleaned = false;
  if (one.moving != 0 || one.mapping || one.phase != Phase::forgotten) return;
  orphans_.push_back(erase(id));
}

/// Begins to move a page. False where the tiers take no more now.
bool Parking::submit(TransferKind kind, UnitId id, std::uint32_t number) {
  Unit& one = unit(id);
  Page& page = one.pages[number];
  const Address address = page.at.reservation->address_of(page.at.page);
  if (!tiers_->submit(kind, page.place, reinterpret_cast<std::byte*>(address.value), tag_of(id, number)))
    return false;
  const Nanoseconds now = pool().clock().now();
  if (in_flight_ == 0) moved_at_ = now;
  if (kind == TransferKind::read) rates_[page.place.tier].begun(now);
  page.moving = true;
  one.reads |= kind == TransferKind::read;
  ++one.moving;
  ++in_flight_;
  return true;
}

std::uint64_t Parking::key_of(const TierPlace& place) {
  return static_cast<std::uint64_t>(place.tier) << 32 | place.slot.index;
}

/// A page does not have this place any more.
void Parking::give_back(const TierPlace& place) {
  if (const auto others = shared_.find(key_of(place)); others == shared_.end())
    tiers_->give_back(place);
  else if (--others->second == 0)
    shared_.erase(others);
}

void Parking::forget_copy(Page& page) {
  if (page.copied) give_back(page.place);
  page.copied = false;
}

/// The unit's pages are these; copies of those that were there before are good still.
void Parking::carry_copies(Unit& unit, std::vector<ParkedPage>&& pages) {
  std::map<std::pair<const Reservation*, std::uint32_t>, Page*> before;
  for (Page& page : unit.pages)
    if (page.copied) before[{page.at.reservation, page.at.page.value}] = &page;
  std::vector<Page> now;
  now.reserve(pages.size());
  unit.dirty = 0;
  for (ParkedPage& each : pages) {
    Page page{.at = each};
    if (const auto found = before.find({each.reservation, each.page.value}); found != before.end()) {
      page.place = found->second->place;
      page.copied = std::exchange(found->second->copied, false);
    }
    unit.dirty += !page.copied;
    now.push_back(page);
  }
  for (Page& page : unit.pages) forget_copy(page);
  unit.pages = std::move(now);
}

}  // namespace vmm
