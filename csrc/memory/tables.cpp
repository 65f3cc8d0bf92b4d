#include "memory/tables.h"

#include <algorithm>
#include <iterator>

#include "base/error.h"

namespace vmm {

Tables::Tables(const Capabilities& driver, Bytes run_bytes, Epochs& epochs, Allowance allowance)
    : fresh_pages_are_zero_(driver.fresh_pages_are_zero),
      epochs_(epochs),
      allowance_(std::move(allowance)),
      last_uses_(epochs, mapped_),
      physical_(run_bytes, driver.merges_neighbours),
      retired_(epochs) {}

Reservation& Tables::add(AddressRange addresses, const ReservationShape& shape) {
  Tenant& tenant = tenants_.for_reservation(shape.tenant);
  const ReservationId id{next_reservation_};
  const Pages per_run = physical_.pages_per_run(shape.page_bytes);
  auto made =
      std::make_unique<Reservation>(id, std::move(addresses), shape, tenant, per_run, mapped_, sharing_);
  Reservation& reservation = *(reservations_[id.value] = std::move(made));
  ++next_reservation_;
  tenants_.count_reservation(tenant, true);
  return reservation;
}

bool Tables::recycle(Reservation& reservation) {
  reservation.idle_fence = epochs_.fence();
  const std::uint16_t last_use = last_uses_.number(reservation.idle_fence);
  for (std::uint32_t i = 0; i < reservation.table.size().count; ++i) unkeep(reservation, {i}, last_use);
  reservation.leased = false;
  forget_use(reservation, 0, reservation.uses.size());
  reservation.idle_since = ++recyclings_;
  erase_if_empty(reservation);
  return last_uses_.over(last_use);
}

void Tables::erase_if_empty(Reservation& reservation) {
  if (reservation.leased || reservation.table.in_use().count != 0) return;
  for (RunId run : reservation.window_runs)
    if (run.valid()) physical_.leave_behind(run);
  Tenant& tenant = reservation.tenant;
  reservations_.erase(reservation.id.value);
  tenants_.count_reservation(tenant, false);
}

Reservation* Tables::reservation_at(Address address) const {
  const auto found = std::ranges::find_if(
      reservations_, [&](const auto& entry) { return entry.second->addresses.contains(address); });
  return found == reservations_.end() ? nullptr : found->second.get();
}

std::optional<PhysicalPageId> Tables::page_at(Address address) const {
  const Reservation* reservation = reservation_at(address);
  if (reservation == nullptr) return std::nullopt;
  const std::uint64_t at = (address - reservation->addresses.base()) / reservation->shape.page_bytes;
  const VirtualPage& page = reservation->table[{static_cast<std::uint32_t>(at)}];
  if (page.state != VirtualState::resident) return std::nullopt;
  return contents_[page.content].page;
}

std::optional<PhysicalPageId> Tables::mark_exported(Address address) {
  const auto page = page_at(address);
  if (page) physical_[*page].exported = reservation_at(address)->exported = true;
  return page;
}

void Tables::drop_run_if_unused(RunId id) {
  const Run& run = physical_.run(id);
  if (!run.owned || run.in_use != 0) return;
  if (run.window.reservation.valid())
    reservations_.at(run.window.reservation.value)->window_runs[run.window.window] = {};
  physical_.give_back_run(id);
}

/// Moves the content's memory to the state that follows from the pages that hold the content.
void Tables::settle(ContentId id) {
  const Content& content = contents_[id];
  const PhysicalState now = physical_[content.page].state;
  const bool leaving = content.unmapping == content.references;
  if (now != PhysicalState::busy && leaving) physical_.move(content.page, PhysicalState::busy);
  if (content.references == 0)
    physical_.move(content.page, PhysicalState::free);
  else if (now == PhysicalState::busy && !leaving)
    physical_.move(content.page, PhysicalState::mapped);
}

/// The page is not mapped any more. Returns whether its memory is free now, because it was the last that held
/// the content.
bool Tables::drop_content(Reservation& reservation, PageIndex page) {
  const ContentId id = reservation.table[page].content;
  const PhysicalPageId physical = contents_[id].page;
  sharing_.remove(id, {&reservation, page});
  contents_.drop(id);
  settle(id);
  reservation.table.set_content(page, {});
  if (contents_[id].references != 0) {
    saved_ -= reservation.shape.page_bytes;
    return false;
  }
  reservation.tenant.held -= reservation.shape.page_bytes;
  drop_run_if_unused(physical_[physical].run);
  return true;
}

Releasing Tables::begin_releasing(std::vector<PhysicalPageId> pages) {
  Releasing what{std::move(pages), {}, {}};
  what.handles.reserve(what.pages.size());
  for (PhysicalPageId page : what.pages) {
    what.size += physical_.page_bytes(page);
    what.handles.push_back(std::move(physical_[page].handle));
    physical_.move(page, PhysicalState::releasing);
  }
  in_transit_ += what.size;
  return what;
}

Bytes Tables::end_releasing(Releasing& what) {
  Bytes released;
  for (std::size_t i = 0; i < what.pages.size(); ++i) {
    PhysicalPage& page = physical_[what.pages[i]];
    if (what.handles[i]) {
      page.handle = std::move(what.handles[i]);
      physical_.move(what.pages[i], PhysicalState::free);
      continue;
    }
    physical_.move(what.pages[i], PhysicalState::absent);
    page.holds = {};
    page.exported = false;
    released += physical_.page_bytes(what.pages[i]);
  }
  allowance_.give_back(released);
  in_transit_ -= what.size;
  return released;
}

std::optional<Filling> Tables::begin_filling(Bytes page_bytes, std::uint64_t count) {
  Filling what;
  what.pages.reserve(count);
  what.created.reserve(count);
  filling_.reserve(filling_.size() + 1);
  what.run = physical_.take_empty_run(page_bytes);
  for (std::uint64_t i = 0; i < physical_.run(what.run).pages && what.pages.size() < count; ++i) {
    const PhysicalPageId page = physical_.page_at(what.run, i);
    if (physical_[page].state == PhysicalState::absent)
      what.pages.emplace_back(page, physical_.place_of(page));
  }
  what.size = page_bytes * what.pages.size();
  if (!allowance_.take(what.size, false)) {
    physical_.give_back_run(what.run);
    return std::nullopt;
  }
  in_transit_ += what.size;
  for (const auto& [page, place] : what.pages) physical_.move(page, PhysicalState::busy);
  filling_.push_back(what.run);
  return what;
}

void Tables::end_filling(Filling& what) {
  const Bytes page_bytes = physical_.run(what.run).page_bytes;
  for (std::size_t i = 0; i < what.pages.size(); ++i) {
    const PhysicalPageId page = what.pages[i].first;
    const bool made = i < what.created.size();
    if (made) physical_[page].handle = std::move(what.created[i]);
    physical_.move(page, made ? PhysicalState::free : PhysicalState::absent);
  }
  allowance_.give_back(page_bytes * (what.pages.size() - what.created.size()));
  physical_.give_back_run(what.run);
  std::erase(filling_, what.run);
  in_transit_ -= what.size;
}

Bytes Tables::age() {
  for (const auto& [id, reservation] : reservations_) reservation->table.age();
  return physical_.take_least_free();
}

bool Tables::over(const Reservation& reservation, PageIndex page) const {
  const VirtualPage& entry = reservation.table[page];
  if (!entry.shared) return last_uses_.over(entry.last_use);
  return std::ranges::all_of(sharing_.of(entry.content), [&](const Alias& each) {
    const VirtualPage& other = each.reservation->table[each.page];
    return other.state == VirtualState::mapping || last_uses_.over(other.last_use);
  });
}

void Tables::note_use(Reservation& reservation, std::uint64_t first_extent, std::uint64_t count,
                      std::uint64_t use) {
  set_use(reservation, first_extent, count, use);
}

void Tables::forget_use(Reservation& reservation, std::uint64_t first_extent, std::uint64_t count) {
  if (!reservation.uses.empty()) set_use(reservation, first_extent, count, 0);
}

void Tables::set_use(Reservation& reservation, std::uint64_t first_extent, std::uint64_t count,
                     std::uint64_t use) {
  if (first_extent + count > reservation.shape.extents)
    throw InvalidArgument("first_extent, count: beyond the end of the reservation");
  if (reservation.uses.empty()) reservation.uses.resize(reservation.shape.extents);
  std::fill_n(reservation.uses.begin() + static_cast<std::ptrdiff_t>(first_extent), count, use);
  if (reservation.table.shared().count == 0) return;
  const std::uint64_t extent = reservation.pages_per_extent().count;
  const PageRange pages{{static_cast<std::uint32_t>(first_extent * extent)}, {count * extent}};
  for (PageIndex page : each_page(std::span(&pages, 1)))
    if (reservation.table[page].shared) sharing_.recount(reservation.table[page].content);
}

bool Tables::may_come_back(const Reservation& reservation, PageIndex page) const {
  const VirtualPage& entry = reservation.table[page];
  return entry.state == VirtualState::resident || (entry.state == VirtualState::retiring && !entry.shared);
}

const VirtualPage& Tables::counted(const Reservation& reservation, PageIndex page) const {
  const VirtualPage& entry = reservation.table[page];
  if (!entry.shared) return entry;
  const Alias& first = sharing_.of(entry.content).front();
  return first.reservation->table[first.page];
}

Bytes Tables::waiting() const {
  Bytes sum;
  last_uses_.for_each_not_over([&](std::uint16_t number) { sum += mapped_.last_used(number); });
  return sum;
}

}  // namespace vmm
