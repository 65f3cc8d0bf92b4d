// The physical pages of one device under a budget, and the reservations they are mapped into.
//
// A pool has rooms, and this is their facade. All of them stand on the tables (virtual pages, contents,
// physical pages and their transitions, which know no driver and never wait) and on the ground (driver,
// budget, clock, lock, epochs, and what the pager is told). Besides those,
//
//   leases      makes, leases and recycles reservations, and calls reclaiming;
//   mapping     makes pages Resident: it decides, calls the driver and commits. What it has claimed undoes
//               itself (claims.h). It calls reclaiming;
//   reclaiming  says what may be had and gets it back; it calls unmapping and streams, and asks
//               policy/borrowed_first.h which pages go;
//   unmapping   does in the driver what reclaiming has decided, and calls nobody;
//   tenancies   makes tenants, and calls reclaiming, which asks quotas.h how much each may have;
//   streams     has the streams that the pool has made, and calls nobody.
//
// One lock guards the tables. Every operation runs in numbered phases: decide and claim under the lock, call
// the driver without it, commit under it. A claimed page is Mapping, Retiring, Busy or Releasing, which keeps
// everybody else away from it meanwhile.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <utility>
#include <vector>

#include "memory/leases.h"
#include "memory/mapping.h"
#include "memory/pool_options.h"
#include "memory/reclaiming.h"
#include "memory/tenancies.h"

namespace vmm {

class Lease;

/// Safe from any thread.
class Pool : public std::enable_shared_from_this<Pool> {
 public:
  /// Throws what the driver throws when it cannot reserve the arena. In a forked child a pool is never
  /// destroyed: what it would undo belongs to the parent.
  static std::shared_ptr<Pool> make(std::unique_ptr<Driver> driver, std::shared_ptr<Budget> budget,
                                    std::shared_ptr<Clock> clock, PoolOptions options);
  Pool(const Pool&) = delete;
  Pool& operator=(const Pool&) = delete;

  /// Leases an idle reservation of the same byte kind, page and extent size, with its pages still mapped, or
  /// a new one. See Leases::reserve.
  std::shared_ptr<Lease> reserve(const ReservationShape& shape, std::optional<StreamHandle> stream = {});

  /// Makes the pages Resident. Throws OutOfPages or what the driver threw, with no page claimed or kept.
  MapResult map(Reservation& reservation, std::span<const PageRange> ranges, const MapOptions& options) {
    return mapping_.map(reservation, ranges, options);
  }
  /// Lowers the need for Resident pages among these. They stay mapped until somebody needs their memory, who
  /// has those that were kept once `until` is complete. But those whose memory others share are unmapped
  /// then: nobody may find them here again, and write to them.
  void unkeep(Reservation& reservation, std::span<const PageRange> ranges, const Fence& until,
              Need need = Need::none);
  /// Does the same for pages that nobody will write to before let_go() was called for them: so those whose
  /// memory others share stay mapped, too.
  void set_aside(Reservation& reservation, std::span<const PageRange> ranges, const Fence& until,
                 Need need = Need::none);
  /// Unmaps those of these pages whose memory others share, once `until` is complete: then the others may be
  /// written to.
  void let_go(Reservation& reservation, std::span<const PageRange> ranges, const Fence& until);
  /// Ends the need for pages that map() has just kept and nobody has used, so that work under way does not
  /// hold them back.
  void call_off(Reservation& reservation, std::span<const PageRange> ranges);
  /// Unmaps the Resident pages among these once `fence` is complete; see Reclaiming::drain_retired. With
  /// `to_system` their memory then goes back to the driver.
  void retire(Reservation& reservation, std::span<const PageRange> ranges, Fence fence,
              bool to_system = false);
  /// Zeroes mapped bytes on `stream`, for example after a write failed that had been announced.
  void zero(Reservation& reservation, Bytes offset, Bytes size, StreamHandle stream = {});

  /// Whether another page has the memory of this one, too, be it only until this one is unmapped.
  bool shared(const Reservation& reservation, PageIndex page) const;
  /// Bytes in these ranges that are not Resident.
  Bytes missing(const Reservation& reservation, std::span<const PageRange> ranges) const;
  Bytes mapped(const Reservation& reservation) const;

  /// Gives back what is needed less than `whose`: see Reclaiming::trim.
  Bytes trim(Bytes wanted, bool wait = false, Need whose = Need::kept) {
    return reclaiming_.trim(wanted, wait, whose);
  }
  /// The pool takes no new work from here on, and its streams end. Idle memory is given back now, and leased
  /// memory when its lease ends. The pool waits for work that uses its memory or is on its streams, but not
  /// longer than `patience` from now; what is left then it leaves to the process, and logs that, as it logs
  /// what the driver refuses. Closing again tries again.
  void close(Nanoseconds patience = Nanoseconds::max());
  bool closed() const;

  PoolStats stats() const;
  /// Throws InvariantViolation when the tables contradict each other or the budget.
  void check() const;

  Driver& driver() noexcept { return *ground_.driver; }
  Budget& budget() noexcept { return *ground_.budget; }
  Clock& clock() noexcept { return *ground_.clock; }
  Epochs& epochs() noexcept { return ground_.epochs; }
  Counters& counters() noexcept { return ground_.counters; }
  Log& log() noexcept { return ground_.log; }
  const ForkGuard& fork_guard() const noexcept { return ground_.fork_guard; }
  Bytes run_bytes() const noexcept { return run_bytes_; }

  Signals& signals() noexcept { return ground_.signals; }
  Streams& streams() noexcept { return streams_; }
  Reclaiming& reclaiming() noexcept { return reclaiming_; }
  Mapping& mapping() noexcept { return mapping_; }
  Leases& leases() noexcept { return leases_; }
  Tenancies& tenancies() noexcept { return tenancies_; }

  class Needs;

 private:
  friend class Lease;

  Pool(std::unique_ptr<Driver> driver, std::shared_ptr<Budget> budget, std::shared_ptr<Clock> clock,
       const PoolOptions& options);
  ~Pool();

  void retire_shared(Reservation& reservation, std::span<const PageRange> ranges, const Fence& until);
  void lower_need(Reservation& reservation, std::span<const PageRange> ranges, const Fence& until, Need need);
  void give_up_shared(Reservation& reservation) noexcept;
  void end_lease(Reservation& reservation, bool whole) noexcept;
  void tear_down() noexcept;
  std::uint64_t await_streams();
  void log_impatience(std::uint64_t streams);

  Ground ground_;
  const Bytes run_bytes_;
  Arena arena_;
  Tables tables_;
  Streams streams_;
  Reclaiming reclaiming_;
  Mapping mapping_;
  Leases leases_;
  Tenancies tenancies_;
};

/// Several looks at which pages are Resident, and changes of how much they are needed, under the pool's lock,
/// which this holds while it lives: no method of the pool may be called meanwhile.
class Pool::Needs {
 public:
  explicit Needs(Pool& pool);
  /// Tells those who wait for memory, where something is needed less now.
  ~Needs();
  Needs(const Needs&) = delete;
  Needs& operator=(const Needs&) = delete;

  /// Pages of the range that are Resident, up to the first that is not.
  Pages resident(const Reservation& reservation, const PageRange& range) const;
  /// Those that have been kept since they became Resident, up to the first that has not: what was mapped
  /// ahead may have come too late, and then holds nothing of what its place is known for.
  Pages used(const Reservation& reservation, const PageRange& range) const;
  /// Whether the page is neither mapped nor on its way there or back.
  bool unmapped(const Reservation& reservation, PageIndex page) const {
    return reservation.table[page].state == VirtualState::unmapped;
  }
  /// Whether the tenant may be charged for keeping these Resident pages, too.
  bool may_keep(const Reservation& reservation, std::span<const PageRange> ranges) const;
  /// The same for pages of several reservations of one tenant, together.
  using Ranges = std::vector<std::pair<Reservation*, std::vector<PageRange>>>;
  bool may_keep(const Ranges& all) const;
  /// What to throw where it may not.
  OutOfPages out_of_pages(const Reservation& reservation, std::span<const PageRange> ranges) const;
  /// What to throw where the tenant cannot have so much.
  OutOfPages out_of_pages(Bytes asked, const Tenant& tenant) const;
  /// Whether these Resident pages share one content.
  bool same_content(const Reservation& reservation, PageIndex one, PageIndex other) const {
    return reservation.table[one].content == reservation.table[other].content;
  }
  /// The physical page that is Resident at the address. It stays that one only while it is kept.
  PageHandle physical(Address address) const;
  /// From now on the Resident pages among these that are not kept are needed to this degree; to keep them,
  /// may_keep() must have said so.
  void set(Reservation& reservation, std::span<const PageRange> ranges, Need need);
  /// See Tables::new_use, note_use and forget_use.
  std::uint64_t new_use() noexcept { return tables_.new_use(); }
  void note_use(Reservation& reservation, std::uint64_t first_extent, std::uint64_t count,
                std::uint64_t use) {
    tables_.note_use(reservation, first_extent, count, use);
  }
  void forget_use(Reservation& reservation, std::uint64_t first_extent, std::uint64_t count) {
    tables_.forget_use(reservation, first_extent, count);
  }

 private:
  template <class Price>
  bool may_pay(const Tenant& tenant, Price price) const;

  Signals& signals_;
  Tables& tables_;
  const Reclaiming& reclaiming_;
  std::lock_guard<Mutex> lock_;
  bool less_ = false;      // something is needed less
  bool nobody_s_ = false;  // something may be needed by nobody
};

/// The right to use a reservation. When it ends, the reservation goes back to the pool, still mapped.
class Lease {
 public:
  Lease(std::shared_ptr<Pool> pool, std::uint64_t extents) : pool_(std::move(pool)), extents_(extents) {}
  ~Lease() {
    if (reservation_ != nullptr) pool_->end_lease(*reservation_, ends_without_shared_);
  }
  Lease(const Lease&) = delete;
  Lease& operator=(const Lease&) = delete;

  Pool& pool() const noexcept { return *pool_; }
  Reservation& reservation() const noexcept { return *reservation_; }
  Address base() const noexcept { return reservation_->addresses.base(); }
  const ReservationShape& shape() const noexcept { return reservation_->shape; }
  /// As asked for; an adopted reservation may have more.
  std::uint64_t extents() const noexcept { return extents_; }
  Bytes size() const noexcept { return shape().extent_bytes * extents_; }
  /// When this lease ends, pages that others share are to be unmapped, so that the reservation can be
  /// adopted.
  void end_without_shared() noexcept { ends_without_shared_ = true; }

 private:
  friend class Pool;

  std::shared_ptr<Pool> pool_;
  Reservation* reservation_ = nullptr;  // none only while Pool::reserve looks for one
  std::uint64_t extents_;
  std::atomic<bool> ends_without_shared_{false};
};

}  // namespace vmm
