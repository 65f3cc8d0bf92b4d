// The physical pages of one device under a budget, and the reservations they are mapped into.
//
// One lock guards the three tables (virtual pages, contents, physical pages). Every operation runs in
// numbered phases: decide and claim under the lock, call the driver without it, commit under it. A claimed
// page is Mapping, Retiring or Busy, which keeps everybody else away from it meanwhile.
#pragma once

#include <atomic>
#include <condition_variable>
#include <functional>
#include <list>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <span>
#include <utility>
#include <vector>

#include "base/clock.h"
#include "base/counters.h"
#include "base/error.h"
#include "base/fork.h"
#include "base/log.h"
#include "memory/arena.h"
#include "memory/budget.h"
#include "memory/contents.h"
#include "memory/device_limit.h"
#include "memory/fences.h"
#include "memory/last_uses.h"
#include "memory/physical_pages.h"
#include "memory/pool_options.h"
#include "memory/reservation.h"
#include "memory/streams.h"

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

  /// Adopts an idle reservation of the same tenant, page and extent size, with its pages still mapped, or
  /// makes a new one. `stream`: all its work so far, and no other work, comes before the first use.
  /// Throws InvalidArgument, Closed, or OutOfPages when the address space is used up.
  std::shared_ptr<Lease> reserve(const ReservationShape& shape, std::optional<StreamHandle> stream = {});

  /// Makes the pages Resident. Throws OutOfPages or what the driver threw, with no page claimed or kept.
  MapResult map(Reservation& reservation, std::span<const PageRange> ranges, const MapOptions& options);
  /// Ends the need for Resident pages among these. They stay mapped until somebody needs their memory, who
  /// has those that were kept once `until` is complete.
  void unkeep(Reservation& reservation, std::span<const PageRange> ranges, const Fence& until);
  /// The same for pages that map() has just kept and nobody has used: work under way does not hold them back.
  void call_off(Reservation& reservation, std::span<const PageRange> ranges);
  /// Unmaps the Resident pages among these once `fence` is complete; see drain_retired.
  void retire(Reservation& reservation, std::span<const PageRange> ranges, Fence fence);
  /// Unmaps what was retired and is over; with `refused_too`, also what the driver has refused before: that
  /// costs calls that fail. True when something is left that only has to be waited for.
  bool drain_retired(bool refused_too = false);
  /// Whether the driver has refused to unmap something, so that drain_retired must try again.
  bool refused() const;
  /// The mapped page that holds the address, for another process. Its memory has no other owner in this pool
  /// from now on: when its reservation no longer needs it, it goes back to the driver.
  ExportedPage export_page(Address address);
  /// Zeroes mapped bytes on `stream`, e.g. of a write that was announced and failed.
  void zero(Reservation& reservation, Bytes offset, Bytes size, StreamHandle stream = {});

  /// A stream of this pool. Throws Closed.
  StreamHandle create_stream();
  /// Its owner puts no more work on it and does not wait: it is destroyed when its work is over. Nothing for
  /// what is no stream of this pool (any more).
  void end_stream(StreamHandle stream);
  /// The same, but waits for its work. Throws InvalidArgument for what is no stream of this pool, unless that
  /// is closed.
  void destroy_stream(StreamHandle stream);
  /// Copies on `stream`: what is released from here on waits for it. Throws Closed on one that has ended.
  void copy(Address to, Address from, Bytes size, StreamHandle stream);
  /// Waits for the work on `stream`.
  void synchronize(StreamHandle stream);

  /// Throws OutOfPages unless `asked` more bytes could be had, by reclaiming if need be. Where what is
  /// lacking may be in the hands of calls under way, or retired, it waits for that; but only for what is to
  /// be kept.
  void require_obtainable(Bytes asked, Need whose = Need::kept);
  /// Bytes in these ranges that are not Resident.
  Bytes missing(const Reservation& reservation, std::span<const PageRange> ranges) const;
  Bytes mapped(const Reservation& reservation) const;
  /// Whether the address is one of this pool's, mapped or not.
  bool holds(Address address) const noexcept { return arena_.contains(address); }
  /// What could be kept beside what is, once `stream` has gone on; negative while the budget is exceeded.
  std::int64_t obtainable(StreamHandle stream) const;
  /// What keeping these ranges would take of that.
  std::int64_t cost(const Reservation& reservation, std::span<const PageRange> ranges,
                    StreamHandle stream) const;
  /// Gives at least `wanted` bytes back to the budget if it can, reclaimable ones included, and what work
  /// that is ending still uses if it may wait for that; but only what is needed less than `whose`. Returns
  /// what it gave back.
  Bytes trim(Bytes wanted, bool wait = false, Need whose = Need::kept);

  /// Creates pages until `wanted` bytes of such pages lie free, as far as the budget and the device allow, in
  /// whole runs, and with `at_most` stops there. Returns what it created. Throws InvalidArgument, Closed, or
  /// what the driver throws but for a lack of memory.
  Bytes warm(Bytes wanted, Bytes page_bytes, Bytes at_most);
  struct Created {
    Bytes size, page_bytes;
  };
  /// What map() has had to create since the last call, and the size of the last page.
  Created take_created();

  /// No new work from here on, nor on the pool's streams: they end. Idle memory is given back, leased memory
  /// when its lease ends. Work that uses it, or is on those streams, is waited for, but from now on not
  /// longer than `patience`: then it is left to the process, which is logged, as is what the driver refuses.
  /// To close again tries again.
  void close(Nanoseconds patience = Nanoseconds::max());
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
  /// A number that changes when memory is given up, or when what was given up may be had at last.
  std::uint64_t given_up();
  /// Somebody waits for that number to change. Returns when to look, if it may without anybody's doing.
  std::optional<Nanoseconds> await_given_up();
  /// An epoch was closed, and what was given up in it may be had soon.
  void epoch_closed();
  /// Whether there may be memory that nobody needs, or a stream that has ended: so age() must be called
  /// again, after a while.
  bool may_idle() const noexcept { return may_idle_; }
  /// A while has passed: what has been mapped or free for all of it, and needed by nobody, has aged. Not what
  /// warm() was asked for.
  void age();
  /// Gives back what has aged: about `at_most` of it. True when there is more.
  bool give_back_aged(Bytes at_most);
  /// Something was done that the device may have more now than when it refused: let it be asked again.
  void forget_device_limit();
  /// `wake` is called, from any thread, when one of these may have changed, or when what could not be
  /// unmapped was retired.
  void on_pressure(std::function<void()> wake);

  class Needs;

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
  struct Filling {
    RunId run;
    std::vector<std::pair<PhysicalPageId, Place>> pages;
    std::vector<CreatedPage> created;  // for the first of them
  };
  struct Shortage {
    Bytes to_create{};
    Bytes lacking{};  // of the budget, for that
    // Free pages at places where they do not help: of runs that are too empty, and of others' windows.
    std::vector<PhysicalPageId> nobodys{}, strays{};
    std::uint64_t freed = 0;  // by then: see PhysicalPages
  };
  struct Unmapping {
    Reservation* reservation;
    std::vector<PageIndex> pages;
    std::vector<PageMapping> mappings{};  // with room for all pages: where mappings run out, so may the heap
    std::size_t done = 0;
  };
  struct Retirement {
    Unmapping what;  // its pages ascending
    Fence fence;
    bool intact;  // mapped and accessible as before, so that it may become Resident again; else refused by
                  // the driver: tried again, but nobody waits for it
  };
  using Retirements = std::list<Retirement>;  // so that what was refused can be put back without memory
  struct MapPlan {
    std::vector<Claim> claims;
    std::vector<CreatedPage> created;   // for the claims that create, in their order
    std::vector<PageMapping> mappings;  // of the claims, once they are created
    bool blocked = false;               // by pages that others are mapping or unmapping
    bool mapped = false;                // the driver has mapped the claims
    Bytes in_transit;                   // what it maps for nobody in particular, and so reclaimable soon
    Retirements refused;                // one, for what the driver may refuse to unmap again
    void reserve_for_undo(Reservation&);
  };

  // pool_map.cpp
  Shortage plan_map(Reservation&, std::span<const PageRange>, const MapOptions&, MapPlan&,
                    std::vector<PageIndex>& kept_here);
  bool claim(Reservation&, PageIndex, MapPlan&);
  void call_driver(Reservation&, MapPlan&, const MapOptions&);
  void zero_claims(const Reservation&, const MapPlan&, const MapOptions&);
  void commit(Reservation&, MapPlan&, const MapOptions&);
  Bytes roll_back(Reservation&, MapPlan&);
  void release_in_vain(Bytes created) noexcept;
  void note_refusal(Bytes refused, Bytes asked, const DriverOutOfMemory& error);
  void become_resident(Reservation&, const Claim&);
  void drop_window_if_unused(Reservation&, PageIndex);
  void require_not_refused(const Reservation&, PageIndex) const;
  void wait_until_unblocked(Reservation&, std::span<const PageRange>);

  // pool_warm.cpp
  bool plan_filling(Bytes wanted, Bytes page_bytes, Filling&);
  void commit_filling(Filling&);

  // pool_retire.cpp
  void rescue(Reservation&, PageIndex);

  static constexpr Nanoseconds recheck{1'000'000};  // a fence completes without telling anybody

  // pool_reclaim.cpp
  Bytes budget_left() const;
  Bytes device_left() const;
  MemoryFigures figures(Bytes asked) const;
  MemoryFigures figures_locked(Bytes asked) const;
  bool is_obtainable(const VirtualPage& page, StreamHandle stream) const;
  Bytes coming() const;
  Bytes waiting() const;
  void make_room(Bytes asked, const Shortage&, Need whose);
  bool await_coming(Need whose);
  bool await_moment();
  bool anything_free() const;
  Bytes reclaim(Bytes wanted, Need whose);
  std::vector<Unmapping> choose_victims(Bytes wanted, Need whose);
  void add_victims(Bytes wanted, bool idle, Need need, Bytes& found, std::vector<Unmapping>& out);

  // pool_unmap.cpp
  struct Releasing {
    std::vector<PhysicalPageId> pages;
    std::vector<CreatedPage> handles;
    Bytes size;
  };
  static Bytes size(const Retirements&);
  Retirements begin_retiring(std::vector<Unmapping>);
  Bytes unmap(Retirements batch);
  Bytes unmap_victims(Retirements victims);
  bool unmap_in_driver(Retirement&, std::exception_ptr& failure) noexcept;
  void begin_unmap(Unmapping&);
  void end_unmap(Retirements& batch, Retirements::iterator, std::vector<PhysicalPageId>& exported);
  Releasing begin_release(std::vector<PhysicalPageId> pages);
  Bytes release(Releasing);
  Bytes release_pages(std::vector<PhysicalPageId>);
  Bytes release_free(Bytes wanted);
  bool free_an_idle_range();
  bool relieve_mappings(Need whose);
  Bytes reclaimable() const;

  // pool_export.cpp
  std::optional<std::pair<PhysicalPageId, Reservation*>> page_at(Address);
  void release_exported(Releasing) noexcept;

  // pool_reserve.cpp
  void recycle(Reservation&) noexcept;
  bool holds_refused(const Reservation&) const;
  bool await_addresses();
  Reservation* find_adoptable(const ReservationShape&, std::optional<StreamHandle>);
  std::optional<Address> allocate_addresses(const ReservationShape&);
  void set_gap(Address start, Bytes size, Gap);
  Reservation& make_reservation(const ReservationShape&);
  void check_page_size(Bytes page_bytes) const;
  void check_shape(const ReservationShape&) const;
  void erase_if_empty(Reservation&);

  // pool_idle.cpp
  void note_idle();
  std::vector<Unmapping> choose_aged(Bytes at_most);

  // pool.cpp
  static void check_ranges(const Reservation&, std::span<const PageRange>);
  void require_open() const;
  void give_back(Bytes) noexcept;
  void tear_down() noexcept;
  std::uint64_t await_streams() noexcept;
  bool is_in_use();
  void log_impatience(std::uint64_t streams);
  bool may_wait() const;
  void wake_pager();
  void wake_pager_if_over_budget();
  void note_given_up(bool at_once);

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
  Streams streams_;
  Bytes run_bytes_;
  std::atomic<std::uint64_t> pressure_bytes_{0};
  std::atomic<bool> awaited_{false};    // what will be given up
  std::atomic<std::uint64_t> room_{0};  // times that there was more of the budget
  std::atomic<bool> may_idle_{false};
  Budget::ListenerId listener_ = 0;
  std::mutex wake_mutex_;  // guards wake_; never held while the pool's lock is taken
  std::function<void()> wake_ = [] {};

  mutable std::mutex mutex_;  // guards what follows
  std::condition_variable changed_;
  bool closed_ = false;
  Arena arena_;
  LastUses last_uses_;
  PhysicalPages physical_;
  std::vector<RunId> filling_;  // runs that no window owns, being filled
  Bytes warmed_;                // the most that warm() was asked for
  Bytes aged_free_;             // of the free, what is to be given back
  Created created_;
  Contents contents_;
  MappedBytes mapped_;
  std::map<std::uint32_t, std::unique_ptr<Reservation>> reservations_;
  std::uint32_t next_reservation_ = 0;
  std::uint64_t recyclings_ = 0;
  std::uint64_t given_up_ = 0;
  Retirements retired_;
  Nanoseconds stop_waiting_at_ = Nanoseconds::max();
  Bytes taken_;  // of the budget: every page that is not absent
  Bytes peak_taken_;
  DeviceLimit device_limit_;
  Bytes in_transit_;  // neither free nor reclaimable while a driver call is under way, but soon to be
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
  /// Resident pages among these that are not kept are needed so much from now on.
  void set(Reservation& reservation, std::span<const PageRange> ranges, Need need);

 private:
  Pool& pool_;
  std::lock_guard<std::mutex> lock_;
  bool less_ = false;      // something is needed less
  bool nobody_s_ = false;  // something may be needed by nobody
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
