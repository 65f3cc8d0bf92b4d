// Makes reservations, leases them, and takes them back whole, with their pages still mapped.
#pragma once

#include <optional>

#include "memory/arena.h"
#include "memory/ground.h"
#include "memory/reclaiming.h"
#include "memory/tables.h"
#include "memory/waiting.h"

namespace vmm {

/// Safe from any thread; called without the pool's lock.
class Leases {
 public:
  Leases(Ground& ground, Tables& tables, Reclaiming& reclaiming, Arena& arena)
      : ground_(ground), tables_(tables), reclaiming_(reclaiming), arena_(arena) {}

  /// Returns an idle reservation that fits, with its pages still mapped, or else a new one; it is leased
  /// until recycle(). Where `stream` is given, the first use comes after all work on that stream so far, so
  /// that work need not be waited for. Throws InvalidArgument, Closed where the pool or the tenant is,
  /// OutOfPages when the address space is used up, or what the driver throws; then no addresses are taken.
  Reservation& reserve(const ReservationShape& shape, std::optional<StreamHandle> stream);
  /// Its user has gone: the reservation is idle, still mapped, and may be adopted.
  void recycle(Reservation& reservation) noexcept;

  /// Whether the address is one of this pool's, mapped or not.
  bool holds(Address address) const noexcept { return arena_.contains(address); }
  Bytes arena_bytes() const noexcept { return arena_.size(); }

 private:
  using Lock = std::unique_lock<Mutex>;

  void check_shape(const ReservationShape& shape) const;
  Reservation* find_adoptable(const ReservationShape& shape, std::optional<StreamHandle> stream);
  AddressRange allocate(Lock& lock, const ReservationShape& shape);
  bool await_addresses(Lock& lock, Wait& wait);
  void set_gap(const AddressRange& addresses, Gap gap);

  Ground& ground_;
  Tables& tables_;
  Reclaiming& reclaiming_;
  Arena& arena_;  // guarded by the pool's lock
};

}  // namespace vmm
