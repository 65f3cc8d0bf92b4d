#include "memory/tables.h"

#include <algorithm>
#include <iterator>

namespace vmm {

Tables::Tables(const Capabilities& driver, Bytes run_bytes, Epochs& epochs, Allowance allowance)
    : fresh_pages_are_zero_(driver.fresh_pages_are_zero),
      epochs_(epochs),
      allowance_(std::move(allowance)),
      last_uses_(epochs),
      physical_(run_bytes, driver.merges_neighbours),
      retired_(epochs) {}

Reservation& Tables::add(AddressRange addresses, const ReservationShape& shape) {
  const ReservationId id{next_reservation_};
  const Pages per_run = physical_.pages_per_run(shape.page_bytes);
  auto made = std::make_unique<Reservation>(id, std::move(addresses), shape, per_run, mapped_);
  Reservation& reservation = *(reservations_[id.value] = std::move(made));
  ++next_reservation_;
  return reservation;
}

bool Tables::recycle(Reservation& reservation) {
  reservation.idle_fence = epochs_.fence();
  const std::uint16_t last_use = last_uses_.number(reservation.idle_fence);
  for (std::uint32_t i = 0; i < reservation.table.size().count; ++i) reservation.table.unkeep({i}, last_use);
  reservation.leased = false;
  reservation.idle_since = ++recyclings_;
  erase_if_empty(reservation);
  return last_uses_.over(last_use);
}

void Tables::erase_if_empty(Reservation& reservation) {
  if (!reservation.leased && reservation.table.in_use().count == 0) reservations_.erase(reservation.id.value);
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

bool Tables::must_zero(const Reservation& reservation, const PhysicalPage& page) const {
  if (!page.holds.valid()) return !fresh_pages_are_zero_;
  return page.holds != reservation.shape.kind || reservation.shape.zeroed;
}

std::optional<Claim> Tables::claim(Reservation& reservation, PageIndex page) {
  RunId& run = reservation.window_runs[reservation.window_of(page)];
  if (!run.valid()) run = physical_.take_run(reservation.shape.page_bytes);
  const PhysicalPageId id = physical_.page_at(run, reservation.position_of(page));
  const PhysicalPage& physical = physical_[id];
  if (physical.state == PhysicalState::releasing) return std::nullopt;
  Claim claim{page,
              id,
              physical_.place_of(id),
              physical.handle.get(),
              physical.state == PhysicalState::absent,
              must_zero(reservation, physical),
              {}};
  physical_.move(id, PhysicalState::busy);
  reservation.table.move(page, VirtualState::mapping);
  return claim;
}

void Tables::unclaim(Reservation& reservation, Claim& claim) {
  const bool absent = claim.create && !claim.made;
  if (claim.made) physical_[claim.physical].handle = std::move(claim.made);
  reservation.table.move(claim.page, VirtualState::unmapped);
  physical_.move(claim.physical, absent ? PhysicalState::absent : PhysicalState::free);
  drop_window_if_unused(reservation, claim.page);
}

void Tables::become_resident(Reservation& reservation, Claim& claim, Need need) {
  PhysicalPage& physical = physical_[claim.physical];
  if (claim.made) physical.handle = std::move(claim.made);
  physical.holds = reservation.shape.kind;
  physical.mapped_by = {reservation.id, claim.page};
  physical_.move(claim.physical, PhysicalState::mapped);
  reservation.table.set_content(claim.page, contents_.add(reservation.shape.kind, claim.physical));
  reservation.table.move(claim.page, VirtualState::resident);
  reservation.table.set_need(claim.page, need);
}

void Tables::become_refused(Reservation& reservation, std::span<Claim> claims, Retirements room) {
  for (Claim& claim : claims) {
    const ByteKind holds = physical_[claim.physical].holds;  // It may not have been zeroed.
    become_resident(reservation, claim, Need::none);
    physical_[claim.physical].holds = holds;
    reservation.table.move(claim.page, VirtualState::retiring);
    room.back().pages.push_back(claim.page);
  }
  room.back().intact = false;
  retired_.add(room);
}

void Tables::drop_window_if_unused(Reservation& reservation, PageIndex page) {
  RunId& run = reservation.window_runs[reservation.window_of(page)];
  if (!run.valid() || physical_.run(run).in_use != 0) return;
  physical_.give_back_run(run);
  run = {};
}

void Tables::retire(Reservation& reservation, std::span<const PageRange> ranges, Fence fence) {
  std::vector<PageIndex> pages;
  for (PageIndex page : each_page(ranges))
    if (reservation.table[page].state == VirtualState::resident) pages.push_back(page);
  std::ranges::sort(pages);  // The ranges may overlap, in any order.
  pages.erase(std::unique(pages.begin(), pages.end()), pages.end());
  if (pages.empty()) return;
  Retirements batch;
  batch.emplace_back(reservation, std::move(pages), std::move(fence));
  for (PageIndex page : batch.back().pages) reservation.table.move(page, VirtualState::retiring);
  retired_.add(batch);
}

void Tables::rescue(Reservation& reservation, PageIndex page) {
  const PhysicalPageId physical = contents_[reservation.table[page].content].page;
  if (physical_[physical].state != PhysicalState::mapped) return;  // Its unmapping is under way.
  std::optional<Fence> readers = retired_.fence_of(reservation, page);
  if (!readers) return;
  const std::uint16_t last_use = last_uses_.number(std::move(*readers));  // They may still read it.
  retired_.call_back(reservation, page);
  reservation.table.move(page, VirtualState::resident, last_use);
}

void Tables::begin_retiring(const Retirements& batch) {
  for (const Retirement& entry : batch)
    for (PageIndex page : entry.pages) entry.reservation->table.move(page, VirtualState::retiring);
  in_transit_ += size(batch);
}

Retirements Tables::take_over(bool refused_too) {
  Retirements over = retired_.take_over(refused_too);
  in_transit_ += size(over);
  return over;
}

void Tables::begin_unmapping(Retirement& what) {
  what.mappings.clear();
  what.done = 0;
  for (PageIndex page : what.pages) {
    const PhysicalPageId id = contents_[what.reservation->table[page].content].page;
    physical_.move(id, PhysicalState::busy);
    what.mappings.push_back(
        {what.reservation->address_of(page), physical_[id].handle.get(), physical_.page_bytes(id)});
  }
}

std::vector<PhysicalPageId> Tables::end_unmapping(Retirements& batch) {
  std::vector<PhysicalPageId> exported;
  in_transit_ -= size(batch);
  for (auto entry = batch.begin(); entry != batch.end();) {
    end_unmapping(*entry, exported);
    Reservation& reservation = *entry->reservation;
    entry = entry->pages.empty() ? batch.erase(entry) : std::next(entry);
    erase_if_empty(reservation);
  }
  retired_.add(batch);
  return exported;
}

/// Keeps in `what`, as refused, the pages that the driver has not unmapped.
void Tables::end_unmapping(Retirement& what, std::vector<PhysicalPageId>& exported) {
  Reservation& reservation = *what.reservation;
  for (std::size_t i = 0; i < what.pages.size(); ++i) {
    const PageIndex page = what.pages[i];
    const ContentId content = reservation.table[page].content;
    const PhysicalPageId id = contents_[content].page;
    if (i >= what.done) {
      physical_.move(id, PhysicalState::mapped);
      continue;
    }
    contents_.drop(content);
    reservation.table.set_content(page, {});
    reservation.table.move(page, VirtualState::unmapped);
    physical_[id].mapped_by = {};
    physical_.move(id, PhysicalState::free);
    if (physical_[id].exported) exported.push_back(id);
    drop_window_if_unused(reservation, page);
  }
  what.pages.erase(what.pages.begin(), what.pages.begin() + static_cast<std::ptrdiff_t>(what.done));
  what.intact = false;
  what.fence.clear();
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

Bytes Tables::waiting() const {
  Bytes sum;
  last_uses_.for_each_not_over([&](std::uint16_t number) { sum += mapped_.last_used(number); });
  return sum;
}

}  // namespace vmm
