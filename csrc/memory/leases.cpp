#include "memory/leases.h"

#include <algorithm>
#include <string>
#include <tuple>
#include <utility>

#include "base/error.h"

namespace vmm {

void Leases::check_shape(const ReservationShape& shape) const {
  check_page_size(ground_.driver->capabilities(), shape.page_bytes);
  if (shape.extent_bytes.count == 0 || (shape.extent_bytes % shape.page_bytes).count != 0)
    throw InvalidArgument("extent_bytes is " + std::to_string(shape.extent_bytes.count) +
                          "; expected a positive multiple of page_bytes, " +
                          std::to_string(shape.page_bytes.count));
  if (shape.extents == 0) throw InvalidArgument("extents is 0; expected at least 1");
  if (shape.extents > arena_.size() / shape.extent_bytes)
    throw InvalidArgument("extents × extent_bytes is more than the pool's address space, " +
                          std::to_string(arena_.size().count) + " bytes");
  if (shape.extent_bytes * shape.extents / shape.page_bytes >= PageIndex::none)
    throw InvalidArgument("page_bytes is too small for so large a reservation: more than 2^32 pages");
  if (!shape.kind.valid()) throw InvalidArgument("kind: out of range");
}

Reservation& Leases::reserve(const ReservationShape& shape, std::optional<StreamHandle> stream) {
  ground_.require_parent();
  ground_.epochs.poll();
  Lock lock(ground_.mutex);
  ground_.require_open();
  check_shape(shape);
  tables_.tenants().for_reservation(shape.tenant);  // throws where it has ended
  if (Reservation* adopted = find_adoptable(shape, stream)) {
    adopted->leased = true;
    ground_.counters.reservations_adopted.add();
    return *adopted;
  }
  AddressRange addresses = allocate(lock, shape);
  {
    const Unlocked outside(lock);  // When this fails, the addresses die under the lock.
    set_gap(addresses, shape.zeroed ? Gap::zeros : Gap::faults);
  }
  Reservation& made = tables_.add(std::move(addresses), shape);
  ground_.counters.reservations_made.add();
  return made;
}

/// The caller holds the lock.
Reservation* Leases::find_adoptable(const ReservationShape& wanted, std::optional<StreamHandle> stream) {
  Reservation* best = nullptr;
  if (wanted.zeroed) return nullptr;
  for (const auto& [id, candidate] : tables_.reservations()) {
    const ReservationShape& shape = candidate->shape;
    // Pages that the driver does not unmap cannot be mapped anew, and others may read those that are shared.
    if (candidate->leased || candidate->table.shared().count != 0 || candidate->exported ||
        tables_.retired().any_refused(*candidate) || shape.zeroed || shape.page_bytes != wanted.page_bytes ||
        shape.extent_bytes < wanted.extent_bytes ||
        shape.extent_bytes > std::max(wanted.extent_bytes, wanted.longest) ||
        shape.extents < wanted.extents || shape.kind != wanted.kind || shape.tenant != wanted.tenant ||
        !ground_.epochs.complete(candidate->idle_fence, stream))
      continue;
    // The closest fit is best; among equals, the one with most pages mapped.
    auto rank = [](const Reservation& r) {
      return std::tuple(r.shape.extent_bytes, r.shape.extents, ~r.table.resident().count);
    };
    if (best == nullptr || rank(*candidate) < rank(*best)) best = candidate.get();
  }
  return best;
}

AddressRange Leases::allocate(Lock& lock, const ReservationShape& shape) {
  const Bytes size = shape.extent_bytes * shape.extents;
  for (Wait wait(ground_, "a reservation that nobody leases ends");;) {
    if (std::optional<AddressRange> found = arena_.allocate(size, shape.page_bytes)) return std::move(*found);
    bool ended;
    {
      const Unlocked outside(lock);
      ended = reclaiming_.end_an_idle_reservation();
      if (!ended) ground_.epochs.poll();
    }
    if (!ended && !await_addresses(lock, wait))
      throw OutOfPages(
          reclaiming_.figures(size, tables_.tenants().for_reservation(shape.tenant)),
          "the pool's address space of " + std::to_string(arena_.size().count) + " bytes is used up");
  }
}

/// Waits a moment where a reservation that nobody leases will end without anybody's doing; else false.
bool Leases::await_addresses(Lock& lock, Wait& wait) {
  const bool ending = std::ranges::any_of(tables_.reservations(), [&](const auto& entry) {
    const Reservation& reservation = *entry.second;
    return !reservation.leased && !tables_.retired().any_refused(reservation) &&
           !ground_.epochs.waits_for_open_epoch(reservation.idle_fence);
  });
  if (ending) reclaiming_.pause(lock, wait);
  return ending;
}

void Leases::set_gap(const AddressRange& addresses, Gap gap) {
  Gaps* const gaps = ground_.driver->gaps();
  if (gaps == nullptr) return;
  for (Wait wait(ground_, "mappings that are coming free");;) {
    try {
      return gaps->set_gap(addresses.base(), addresses.size(), gap);
    } catch (const MappingLimit&) {
      if (!reclaiming_.relieve_mappings(Need::kept, wait)) throw;
    }
  }
}

void Leases::recycle(Reservation& reservation) noexcept {
  {
    std::lock_guard lock(ground_.mutex);
    ground_.signals.given_up(tables_.recycle(reservation));
  }
  ground_.signals.note_idle();
  ground_.signals.wake_if_over_budget();
}

}  // namespace vmm
