// Into mappings: the pages that a call which maps has claimed, until they are resident or free again.
#include <utility>

#include "memory/tables.h"

namespace vmm {

bool Tables::must_zero(const Reservation& reservation, const PhysicalPage& page) const {
  if (!page.holds.valid()) return !fresh_pages_are_zero_;
  return page.holds != reservation.shape.kind || page.owner != reservation.tenant.id ||
         reservation.shape.zeroed;
}

/// The page's own place, in its window's run. A shared page that was mapped here before may still be in use
/// there, by others; then another place.
PhysicalPageId Tables::place_for(Reservation& reservation, PageIndex page) {
  const Bytes page_bytes = reservation.shape.page_bytes;
  const std::uint64_t window = reservation.window_of(page);
  RunId& run = reservation.window_runs[window];
  if (!run.valid()) run = physical_.take_run(page_bytes, {reservation.id, window});
  const PhysicalPageId own = physical_.page_at(run, reservation.position_of(page));
  const PhysicalState state = physical_[own].state;
  if (state != PhysicalState::busy && state != PhysicalState::mapped) return own;
  if (reservation.pages_per_window.count > 1) return physical_.loose_page(page_bytes);
  const RunId instead = physical_.take_run(page_bytes, {reservation.id, window});
  physical_.leave_behind(run);
  run = instead;
  return physical_.page_at(run, 0);
}

std::optional<Claim> Tables::claim(Reservation& reservation, PageIndex page) {
  const PhysicalPageId id = place_for(reservation, page);
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
  reservation.tenant.held += reservation.shape.page_bytes;
  return claim;
}

Claim Tables::claim_alias(Reservation& reservation, PageIndex page, const Alias& source) {
  const ContentId content = source.reservation->table[source.page].content;
  const PhysicalPageId id = contents_[content].page;
  sharing_.add(content, source, {&reservation, page});
  contents_.share(content);
  saved_ += reservation.shape.page_bytes;
  reservation.table.set_content(page, content);
  reservation.table.move(page, VirtualState::mapping);
  return {page, id, physical_.place_of(id), physical_[id].handle.get(), false, false, {}, true};
}

void Tables::unclaim(Reservation& reservation, Claim& claim) {
  if (claim.alias) {
    drop_content(reservation, claim.page);
    reservation.table.move(claim.page, VirtualState::unmapped);
    return;
  }
  const bool absent = claim.create && !claim.made;
  if (claim.made) physical_[claim.physical].handle = std::move(claim.made);
  reservation.table.move(claim.page, VirtualState::unmapped);
  physical_.move(claim.physical, absent ? PhysicalState::absent : PhysicalState::free);
  reservation.tenant.held -= reservation.shape.page_bytes;
  drop_run_if_unused(physical_[claim.physical].run);
}

void Tables::become_resident(Reservation& reservation, Claim& claim, Need need) {
  if (claim.alias) {
    contents_.give_up(1);
  } else {
    PhysicalPage& physical = physical_[claim.physical];
    if (claim.made) physical.handle = std::move(claim.made);
    physical.holds = reservation.shape.kind;
    physical.owner = reservation.tenant.id;
    physical_.move(claim.physical, PhysicalState::mapped);
    reservation.table.set_content(claim.page, contents_.add(claim.physical));
  }
  reservation.table.move(claim.page, VirtualState::resident);
  reservation.table.set_need(claim.page, need);
}

void Tables::become_refused(Reservation& reservation, std::span<Claim> claims, Retirements room) {
  for (Claim& claim : claims) {
    const PhysicalPage& page = physical_[claim.physical];
    const ByteKind holds = page.holds;  // It may not have been zeroed.
    const TenantId owner = page.owner;
    become_resident(reservation, claim, Need::none);
    physical_[claim.physical].holds = holds;
    physical_[claim.physical].owner = owner;
    reservation.table.move(claim.page, VirtualState::retiring);
    room.back().pages.push_back(claim.page);
  }
  room.back().intact = false;
  retired_.add(room);
}

}  // namespace vmm
