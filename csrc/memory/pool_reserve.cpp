// Reservations: made, leased, recycled whole and still mapped, ended.
#include <algorithm>
#include <string>
#include <tuple>
#include <utility>

#include "base/error.h"
#include "memory/pool.h"

namespace vmm {

void Pool::check_page_size(Bytes page_bytes) const {
  const Bytes granularity = driver_->capabilities().granularity;
  if (!is_power_of_two(page_bytes.count) || page_bytes < granularity)
    throw InvalidArgument("page_bytes is " + std::to_string(page_bytes.count) +
                          "; expected a power of two of at least " + std::to_string(granularity.count) +
                          ", the granularity of the " + driver_->capabilities().name + " driver");
}

void Pool::check_shape(const ReservationShape& shape) const {
  check_page_size(shape.page_bytes);
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
  if (!shape.tenant.valid()) throw InvalidArgument("tenant: out of range");
}

/// Pages that the driver does not unmap cannot be mapped anew.
bool Pool::holds_refused(const Reservation& reservation) const {
  return std::ranges::any_of(retired_, [&](const Retirement& entry) {
    return !entry.intact && entry.what.reservation == &reservation;
  });
}

Reservation* Pool::find_adoptable(const ReservationShape& wanted, std::optional<StreamHandle> stream) {
  Reservation* best = nullptr;
  if (wanted.zeroed) return nullptr;
  for (auto& [id, candidate] : reservations_) {
    const ReservationShape& shape = candidate->shape;
    if (candidate->leased || candidate->exported || holds_refused(*candidate) || shape.zeroed ||
        shape.page_bytes != wanted.page_bytes || shape.extent_bytes < wanted.extent_bytes ||
        shape.extent_bytes > std::max(wanted.extent_bytes, wanted.longest) ||
        shape.extents < wanted.extents || shape.tenant != wanted.tenant ||
        !epochs_.complete(candidate->idle_fence, stream))
      continue;
    // The closest fit, then the one with most pages mapped.
    auto rank = [](const Reservation& r) {
      return std::tuple(r.shape.extent_bytes, r.shape.extents, ~r.table.resident().count);
    };
    if (best == nullptr || rank(*candidate) < rank(*best)) best = candidate.get();
  }
  return best;
}

std::optional<Address> Pool::allocate_addresses(const ReservationShape& shape) {
  std::lock_guard lock(mutex_);
  return arena_.allocate(shape.extent_bytes * shape.extents, shape.page_bytes);
}

/// Waits a moment where a reservation that nobody leases will end without anybody's doing; else false.
bool Pool::await_addresses() {
  epochs_.poll();
  {
    std::unique_lock lock(mutex_);
    const bool ending = std::ranges::any_of(reservations_, [&](const auto& entry) {
      const Reservation& reservation = *entry.second;
      return !reservation.leased && reservation.table.in_use() != reservation.table.resident() &&
             !holds_refused(reservation) && !epochs_.waits_for_open_epoch(reservation.idle_fence);
    });
    if (!ending) return false;
    clock_->wait(lock, changed_, recheck);
  }
  drain_retired();
  return true;
}

void Pool::set_gap(Address start, Bytes size, Gap gap) {
  if (!driver_->capabilities().zero_gaps) return;
  for (;;) {
    try {
      return driver_->set_gap(start, size, gap);
    } catch (const MappingLimit&) {
      if (!relieve_mappings(Need::kept)) throw;
    }
  }
}

Reservation& Pool::make_reservation(const ReservationShape& shape) {
  const Bytes size = shape.extent_bytes * shape.extents;
  std::optional<Address> base;
  while (!(base = allocate_addresses(shape)))
    if (!free_an_idle_range() && !await_addresses())
      throw OutOfPages(figures(size), "the pool's address space of " + std::to_string(arena_.size().count) +
                                          " bytes is used up");
  try {
    set_gap(*base, size, shape.zeroed ? Gap::zeros : Gap::faults);
  } catch (...) {
    std::lock_guard lock(mutex_);
    arena_.free(*base, size);
    throw;
  }
  std::lock_guard lock(mutex_);
  const ReservationId id{next_reservation_++};
  const Pages per_run = physical_.pages_per_run(shape.page_bytes);
  auto owned = std::make_unique<Reservation>(id, *base, shape, per_run, mapped_);
  return *(reservations_[id.value] = std::move(owned));
}

std::shared_ptr<Lease> Pool::reserve(const ReservationShape& shape, std::optional<StreamHandle> stream) {
  fork_guard_.require_parent("this pool");
  epochs_.poll();
  {
    std::lock_guard lock(mutex_);
    require_open();
    check_shape(shape);
    if (Reservation* adopted = find_adoptable(shape, stream)) {
      auto lease = std::make_shared<Lease>(shared_from_this(), *adopted, shape.extents);
      adopted->leased = true;
      counters_.reservations_adopted.add();
      return lease;
    }
  }
  Reservation& made = make_reservation(shape);
  counters_.reservations_made.add();
  return std::make_shared<Lease>(shared_from_this(), made, shape.extents);
}

void Pool::recycle(Reservation& reservation) noexcept {
  if (fork_guard_.in_child()) return;
  bool last = false;
  {
    std::lock_guard lock(mutex_);
    reservation.idle_fence = epochs_.fence();
    const std::uint16_t last_use = last_uses_.number(reservation.idle_fence);
    for (std::uint32_t i = 0; i < reservation.table.size().count; ++i)
      reservation.table.unkeep({i}, last_use);
    reservation.leased = false;
    reservation.idle_since = ++recyclings_;
    note_given_up(last_uses_.over(last_use));
    erase_if_empty(reservation);
    last = closed_;
  }
  note_idle();
  wake_pager_if_over_budget();
  if (last) tear_down();
}

void Pool::erase_if_empty(Reservation& reservation) {
  if (reservation.leased || reservation.table.in_use().count != 0) return;
  arena_.free(reservation.base, reservation.size());
  reservations_.erase(reservation.id.value);
}

}  // namespace vmm
