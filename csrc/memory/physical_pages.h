// The physical pages of a pool, in runs.
//
// A run is a stretch of neighbouring places that serves one window of a reservation, position by position:
// the window's i-th virtual page always takes the run's i-th page. So neighbouring virtual pages are
// neighbours in physical memory in whatever order they are mapped, their mappings merge, and the host's
// limit on mappings (vm.max_map_count) is met by windows instead of pages. Where places do not matter a run
// has one page, and a list of runs is a plain list of pages.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <utility>
#include <vector>

#include "memory/handles.h"

namespace vmm {

/// Absent → Busy → Mapped → Busy → Free → Releasing → Absent, and Free → Busy again. A page is Busy while a
/// driver call maps or unmaps it.
enum class PhysicalState : std::uint8_t { absent, free, releasing, busy, mapped };

/// A window of a reservation, by its number.
struct WindowRef {
  ReservationId reservation;
  std::uint64_t window = 0;
};

struct PhysicalPage {
  CreatedPage handle;
  RunId run;
  PhysicalState state = PhysicalState::absent;
  bool exported = false;  // another process may have it, so it goes back to the driver and gets no new owner
  ByteKind holds;         // invalid while the page is as the driver made it
  TenantId owner{};       // of what it holds
};

struct Run {
  Bytes page_bytes;
  Place place;
  PhysicalPageId first;
  std::uint32_t pages = 0;
  std::uint32_t free = 0;
  std::uint32_t releasing = 0;
  std::uint32_t in_use = 0;  // busy or mapped
  bool owned = false;        // by a window, by shared pages that a window has left behind, or by loose pages
  WindowRef window;          // that owns it; else its reservation is invalid
};

/// Not thread-safe: the pool's lock guards it.
class PhysicalPages {
 public:
  PhysicalPages(Bytes run_bytes, bool merges_neighbours)
      : run_bytes_(run_bytes), merges_neighbours_(merges_neighbours) {}

  Pages pages_per_run(Bytes page_bytes) const;

  /// Returns a run for a window: one that has free pages, else an empty one, else a new one.
  RunId take_run(Bytes page_bytes, WindowRef window);
  /// The run's window owns it no more, but pages of it are still in use, because they are shared.
  void leave_behind(RunId run) { runs_.at(run.value).window = {}; }
  /// A page that is neither in use nor being released, in a run of loose pages: these serve virtual pages
  /// whose own place is in use.
  PhysicalPageId loose_page(Bytes page_bytes);
  /// Returns an empty run, else a new one, for a caller who fills it and gives it back.
  RunId take_empty_run(Bytes page_bytes);
  /// Takes a run back from its owner. No page of it is in use.
  void give_back_run(RunId run);

  PhysicalPageId page_at(RunId run, std::uint64_t position) const;
  Place place_of(PhysicalPageId page) const;
  PhysicalPage& operator[](PhysicalPageId page) { return pages_.at(page.value); }
  const PhysicalPage& operator[](PhysicalPageId page) const { return pages_.at(page.value); }
  const Run& run(RunId run) const { return runs_.at(run.value); }
  Bytes page_bytes(PhysicalPageId page) const { return run((*this)[page].run).page_bytes; }

  /// Throws InvariantViolation for a transition that makes no sense.
  void move(PhysicalPageId page, PhysicalState to);

  /// Returns free pages worth at least `wanted`, or all there are. With `owned` it looks only at runs that a
  /// window owns (true), which alone could use those pages, or only at runs that none owns (false).
  std::vector<PhysicalPageId> some_free(Bytes wanted, std::optional<bool> owned = {}) const;

  std::uint64_t releasing() const noexcept { return releasing_; }
  Bytes free_bytes() const noexcept { return free_bytes_; }
  /// How many times a page became free.
  std::uint64_t freed() const noexcept { return freed_; }
  /// The fewest bytes that were free at any time since this was last called.
  Bytes take_least_free() noexcept { return std::exchange(least_free_, free_bytes_); }
  /// Free pages of runs that no window owns.
  Bytes recycled(Bytes page_bytes) const {
    const auto found = recycled_.find(page_bytes);
    return found == recycled_.end() ? Bytes{} : found->second;
  }
  std::uint32_t size() const noexcept { return static_cast<std::uint32_t>(pages_.size()); }
  std::uint32_t run_count() const noexcept { return static_cast<std::uint32_t>(runs_.size()); }

 private:
  std::optional<RunId> take_from(std::vector<RunId>& list);
  std::optional<PhysicalPageId> takeable(RunId run) const;
  bool is_exported(const Run& run) const;
  RunId make_run(Bytes page_bytes);
  void sort_out_empty_ones();

  Bytes run_bytes_;
  bool merges_neighbours_;
  std::uint64_t next_place_ = 0;
  std::vector<Run> runs_;
  std::vector<PhysicalPage> pages_;
  std::map<Bytes, std::vector<RunId>> warm_;   // free lists, one per page size: runs with free pages,
  std::map<Bytes, std::vector<RunId>> empty_;  // and runs without
  std::map<Bytes, Bytes> recycled_;            // by page size
  std::vector<RunId> loose_;
  bool emptied_ = false;  // some runs in warm_ have lost their free pages since they were sorted out
  Bytes free_bytes_;
  Bytes least_free_;
  std::uint64_t freed_ = 0;
  std::uint64_t releasing_ = 0;
};

}  // namespace vmm
