// The physical pages of one device under a budget, and the reservations they are mapped into.
//
// One lock guards the three tables (virtual pages, contents, physical pages). Every operation runs in
// numbered phases: decide and claim under the lock, call the driver without it, commit under it. A claimed
// page is Mapping, Retiring or Busy, which keeps everybody else away from it meanwhile.
#pragma once

#include <atomic>
#include <condition_variable>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <span>
#include <vector>

#include "base/clock.h"
#include "base/counters.h"
#include "base/fork.h"
#include "base/log.h"
#include "memory/arena.h"
#include "memory/budget.h"
#include "memory/contents.h"
#include "memory/fences.h"
#include "memory/last_uses.h"
#include "memory/physical_pages.h"
#include "memory/reservation.h"

namespace vmm {

class Lease;

struct PoolOptions {
  Bytes arena_bytes;  // 0: 256 times the budget, but at least 2 TiB and at most 16, so that many pools fit
  Bytes run_bytes;    // 0: the larger of 1 MiB and budget ÷ 16,384, so that a full budget is ≤ 16,384 runs
};

struct PoolStats {
  Bytes budget, created, free, mapped, kept, reclaimable, peak_created;
  std::uint64_t reservations_leased, reservations_idle, runs, retirements_waiting;
};

/// Bytes [offset, offset + size) of a reservation.
struct ByteRange {
  Bytes offset;
  Bytes size;
};

struct MapOptions {
  Need need = Need::kept;            // until unkept. What is needed less may be taken when the budget is
                                     // used up; for Need::none nothing is
  bool wait = true;                  // for pages that others are mapping or unmapping
  Pages at_most{~std::uint64_t{0}};  // stop after so many pages that were missing
  std::span<const ByteRange> overwritten;  // write intent, in order: the caller overwrites these, so they
                                           // need no zeroing; should the write fail, it calls zero()
};

struct MapResult {
  Pages mapped;         // that were missing
  bool waited = false;  // for another thread
};

/// Safe from any thread.
class Pool : public std::enable_shared_from_this<Pool> {
 public:
  /// Throws what the driver throws when it cannot reserve the arena. In a forked child a pool is never
  /// destroyed: what it would undo belongs to the parent.
  static std::shared_ptr<Pool> make(std::unique_ptr<Driver> driver, std::shared_ptr<Budget> budget,
                                    std::shared_ptr<Clock> clock, PoolOptions options);
  Pool(const Pool&) = delete;
  Pool& operator=(const Pool&) = delete;

  /// Adopts an idle reservation of the same tenant, page and extent size, with its pages still mapped, or
  /// makes a new one. `stream`: all its work so far, and no other work, comes before the first use.
  /// Throws InvalidArgument, Closed, or OutOfPages when the address space is used up.
  std::shared_ptr<Lease> reserve(const ReservationShape& shape, std::optional<StreamHandle> stream = {});

  /// Makes the pages Resident. Throws OutOfPages or what the driver threw, with no page claimed or kept.
  MapResult map(Reservation& reservation, std::span<const PageRange> ranges, const MapOptions& options);
  /// Ends the need for Resident pages among these: they stay mapped until somebody needs their memory.
  void unkeep(Reservation& reservation, std::span<const PageRange> ranges);
  /// Resident pages among these that are not kept are needed so much from now on.
  void set_need(Reservation& reservation, std::span<const PageRange> ranges, Need need);
  /// The same for pages that map() has just kept and nobody has used: work under way does not hold them back.
  void call_off(Reservation& reservation, std::span<const PageRange> ranges);
  /// Unmaps the Resident pages among these once `fence` is complete; see drain_retired.
  void retire(Reservation& reservation, std::span<const PageRange> ranges, Fence fence);
  /// Unmaps what was retired and is over. True when something is left.
  bool drain_retired();
  /// The mapped page that holds the address, for another process. Its memory has no other owner in this pool
  /// from now on: when its reservation no longer needs it, it goes back to the driver.
  ExportedPage export_page(Address address);
  /// Zeroes mapped bytes on `stream`, e.g. of a write that was announced and failed.
  void zero(Reservation& reservation, Bytes offset, Bytes size, StreamHandle stream = {});

  /// Copies on `stream`: what is released from here on waits for it.
  void copy(Address to, Address from, Bytes size, StreamHandle stream);
  /// Waits for the work on `stream`, and ends it.
  void destroy_stream(StreamHandle stream);
  /// Waits for the work on `stream`.
  void synchronize(StreamHandle stream);

  /// Throws OutOfPages unless `asked` more bytes could be had, by reclaiming if need be. Where what is
  /// lacking may be in the hands of calls under way, it waits for those.
  void require_obtainable(Bytes asked);
  /// Bytes in these ranges that are not Resident.
  Bytes missing(const Reservation& reservation, std::span<const PageRange> ranges) const;
  Bytes mapped(const Reservation& reservation) const;
  /// Pages of the range that are Resident, up to the first that is not.
  Pages resident(const Reservation& reservation, const PageRange& range) const;
  /// What could be kept beside what is, once `stream` has gone on; negative while the budget is exceeded.
  std::int64_t obtainable(StreamHandle stream) const;
  /// What keeping these ranges would take of that.
  std::int64_t cost(const Reservation& reservation, std::span<const PageRange> ranges,
                    StreamHandle stream) const;
  /// Gives at least `wanted` bytes back to the budget if it can, reclaimable ones included, and what work
  /// that is ending still uses if it may wait for that. Returns what it gave back.
  Bytes trim(Bytes wanted, bool wait = false);

  /// No new work from here on; idle memory is given back, leased memory when its lease ends.
  void close();
  bool closed() const;

  PoolStats stats() const;
  /// Throws InvariantViolation when the tables contradict each other or the budget.
  void check() const;

  Driver& driver() noexcept { return *driver_; }
  Budget& budget() noexcept { return *budget_; }
  Clock& clock() noexcept { return *clock_; }
  Epochs& epochs() noexcept { return epochs_; }
  Counters& counters() noexcept { return counters_; }
  Log& log() noexcept { return log_; }
  const ForkGuard& fork_guard() const noexcept { return fork_guard_; }
  Bytes run_bytes() const noexcept { return run_bytes_; }
  Bytes arena_bytes() const noexcept { return arena_.size(); }
  /// What other owners of the budget lack since the last call.
  Bytes take_pressure() noexcept { return {pressure_bytes_.exchange(0)}; }
  /// What there is to give back of a budget that was lowered below what is taken of it.
  Bytes owed() const;
  /// `wake` is called, from any thread, when one of these may have changed, or when what could not be
  /// unmapped was retired.
  void on_pressure(std::function<void()> wake);

 private:
  friend class Lease;

  Pool(std::unique_ptr<Driver> driver, std::shared_ptr<Budget> budget, std::shared_ptr<Clock> clock,
       const PoolOptions& options);
  ~Pool();

  struct Claim {
    PageIndex page;
    PhysicalPageId physical;
    Place place;
    PageHandle handle;
    bool create;
    bool zero;
  };
  struct MapPlan {
    std::vector<Claim> claims;
    std::vector<CreatedPage> created;              // for the claims that create, in their order
    bool blocked = false;                          // by pages that others are mapping or unmapping
    bool mapped = false;                           // the driver has mapped the claims
    std::uint64_t new_window = ~std::uint64_t{0};  // the last one that was given a run for this
    Bytes in_transit;  // what it maps for nobody in particular, and so reclaimable soon
  };
  struct Shortage {
    Bytes page_bytes;
    Bytes to_create;
    Bytes lacking;     // of the budget, for that
    Bytes in_windows;  // … for places in runs that are owned already, where no recycled run can help
  };
  struct Unmapping {
    Reservation* reservation;
    std::vector<PageIndex> pages;
  };
  struct Retirement {
    Unmapping what;  // its pages ascending
    Fence fence;
    bool intact;  // mapped and accessible as before, so that it may become Resident again
  };

  // pool_map.cpp
  Shortage plan_map(Reservation&, std::span<const PageRange>, const MapOptions&, MapPlan&,
                    std::vector<PageIndex>& kept_here);
  bool claim(Reservation&, PageIndex, MapPlan&);
  void call_driver(Reservation&, MapPlan&, const MapOptions&);
  void zero_claims(const Reservation&, const MapPlan&, const MapOptions&);
  void commit(Reservation&, MapPlan&, const MapOptions&);
  void roll_back(Reservation&, MapPlan&);
  void become_resident(Reservation&, const Claim&);
  void drop_window_if_unused(Reservation&, PageIndex);
  void wait_until_unblocked(Reservation&, std::span<const PageRange>);

  // pool_retire.cpp
  void rescue(Reservation&, PageIndex);

  static constexpr Nanoseconds recheck{1'000'000};  // a fence completes without telling anybody

  // pool_reclaim.cpp
  Bytes budget_left() const;
  MemoryFigures figures(Bytes asked) const;
  MemoryFigures figures_locked(Bytes asked) const;
  Bytes reclaimable() const;
  bool is_obtainable(const VirtualPage& page, StreamHandle stream) const;
  Bytes coming() const;
  void make_room(Bytes asked, const Shortage&, Need whose);
  Bytes recycle_runs(Bytes wanted, Bytes page_bytes, Need whose);
  bool await_coming(Need whose);
  Bytes reclaim(Bytes wanted, Need whose);
  std::vector<Unmapping> choose_victims(Bytes wanted, Need whose);
  void add_victims(Bytes wanted, bool idle, Need need, Bytes& found, std::vector<Unmapping>& out);

  // pool_unmap.cpp
  static Bytes size(const std::vector<Unmapping>&);
  Bytes unmap(std::vector<Unmapping> batch);
  Bytes unmap_victims(std::vector<Unmapping> victims);
  std::vector<PageMapping> begin_unmap(const Unmapping&);
  void end_unmap(Unmapping&, std::size_t done, std::vector<PhysicalPageId>& exported);
  struct Releasing {
    std::vector<PhysicalPageId> pages;
    std::vector<CreatedPage> handles;
    Bytes size;
  };
  Releasing begin_release(std::vector<PhysicalPageId> pages);
  Bytes release(Releasing);
  Bytes release_free(Bytes wanted, bool strays_only);
  bool free_an_idle_range();

  // pool_export.cpp
  std::optional<std::pair<PhysicalPageId, Reservation*>> page_at(Address);
  void release_exported(Releasing) noexcept;

  // pool_reserve.cpp
  void recycle(Reservation&) noexcept;
  Reservation* find_adoptable(const ReservationShape&, std::optional<StreamHandle>);
  std::optional<Address> allocate_addresses(const ReservationShape&);
  Reservation& make_reservation(const ReservationShape&);
  void check_shape(const ReservationShape&) const;
  void erase_if_empty(Reservation&);

  // pool.cpp
  static void check_ranges(const Reservation&, std::span<const PageRange>);
  void require_open() const;
  void give_back(Bytes) noexcept;
  void wake_pager();
  void wake_pager_if_over_budget();

  // pool_check.cpp
  void check_physical(const std::vector<std::uint8_t>& owned, std::uint64_t held,
                      std::uint64_t mapping) const;

  std::unique_ptr<Driver> driver_;
  std::shared_ptr<Budget> budget_;
  std::shared_ptr<Clock> clock_;
  ForkGuard fork_guard_;
  Counters counters_;
  Log log_;
  Epochs epochs_;
  Bytes run_bytes_;
  std::atomic<std::uint64_t> pressure_bytes_{0};
  Budget::ListenerId listener_ = 0;
  std::mutex wake_mutex_;  // guards wake_; never held while the pool's lock is taken
  std::function<void()> wake_ = [] {};

  mutable std::mutex mutex_;  // guards what follows
  std::condition_variable changed_;
  bool closed_ = false;
  Arena arena_;
  LastUses last_uses_;
  PhysicalPages physical_;
  Contents contents_;
  std::map<std::uint32_t, std::unique_ptr<Reservation>> reservations_;
  std::uint32_t next_reservation_ = 0;
  std::uint64_t recyclings_ = 0;
  std::deque<Retirement> retired_;
  Bytes taken_;  // of the budget: every page that is not absent
  Bytes peak_taken_;
  Bytes in_transit_;  // neither free nor reclaimable while a driver call is under way, but soon to be
};

/// The right to use a reservation. When it ends, the reservation goes back to the pool, still mapped.
class Lease {
 public:
  Lease(std::shared_ptr<Pool> pool, Reservation& reservation, std::uint64_t extents)
      : pool_(std::move(pool)), reservation_(reservation), extents_(extents) {}
  ~Lease() { pool_->recycle(reservation_); }
  Lease(const Lease&) = delete;
  Lease& operator=(const Lease&) = delete;

  Pool& pool() const noexcept { return *pool_; }
  Reservation& reservation() const noexcept { return reservation_; }
  Address base() const noexcept { return reservation_.base; }
  const ReservationShape& shape() const noexcept { return reservation_.shape; }
  /// As asked for; an adopted reservation may have more.
  std::uint64_t extents() const noexcept { return extents_; }
  Bytes size() const noexcept { return shape().extent_bytes * extents_; }

 private:
  std::shared_ptr<Pool> pool_;
  Reservation& reservation_;
  std::uint64_t extents_;
};

}  // namespace vmm
