// Range: one reservation that shows as one tensor, and who uses which of its pages.
//
// Several Blocks may lie in one range, and neighbours of one or of several may share a page. So users of a
// page are counted here, for all of them, and only the first and the last user of a page are told to the
// pool.
#pragma once

#include <array>
#include <atomic>
#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "base/lock.h"
#include "memory/pool.h"

namespace vmm {

class Pager;
class Scratch;

/// What somebody uses a page for.
enum class Use : std::uint8_t { announced, kept };

/// How many use a page, or a row of pages, for what.
struct Users {
  std::array<std::uint32_t, 2> count{};

  std::uint32_t& operator[](Use use) { return count[static_cast<std::size_t>(use)]; }
  bool any(Use use) const { return count[static_cast<std::size_t>(use)] != 0; }
};

/// Adds pages to a list of ranges in which neighbours are one.
inline void append_page(std::vector<PageRange>& ranges, std::uint32_t page) {
  if (!ranges.empty() && ranges.back().first.value + ranges.back().count.count == page)
    ranges.back().count += Pages{1};
  else
    ranges.push_back({{page}, {1}});
}

/// What needs `mutex` says so; end() and the rest are safe from any thread.
class Range {
 public:
  Range(std::shared_ptr<Pager> pager, std::shared_ptr<Lease> lease);
  ~Range();
  Range(const Range&) = delete;
  Range& operator=(const Range&) = delete;

  /// Ends scratches and gives all memory back once the work on it is over; from here on, its Blocks throw
  /// Closed. A second call does nothing. Throws what Scratch::end throws; then nothing has ended but
  /// scratches.
  void end();
  bool ended() const noexcept { return ended_.load(); }
  void require_open() const;

  Pool& pool() const noexcept { return lease_->pool(); }
  Pager& pager() const noexcept { return *pager_; }
  const std::shared_ptr<Lease>& lease() const noexcept { return lease_; }
  Reservation& reservation() const noexcept { return lease_->reservation(); }
  Bytes page_bytes() const noexcept { return lease_->shape().page_bytes; }

  /// Held by a call that maps what it keeps, so that there is one at a time.
  Mutex& keeping() noexcept { return keeping_; }
  /// Held by the pager while it maps for Blocks, and while a scratch begins.
  FairMutex& ahead() noexcept { return ahead_; }
  /// Guards the counts here and in all Blocks. No call of the driver's is made under it.
  Mutex& mutex() noexcept { return mutex_; }

  // These need the mutex.

  /// One user more, or fewer. Appends the pages that this was the first for, or the last; for which there is
  /// room.
  void count(const PageRange& pages, Use use, bool in, std::vector<PageRange>& changed) noexcept;
  /// The pool keeps these pages from here on, if all of them are Resident; else nothing has changed.
  bool keep_resident(std::span<const PageRange> pages);
  /// These pages have lost their last user for something. Those that nobody keeps are needed less from here
  /// on, or are unmapped if nobody uses them and `unmap`; all that once `until` is complete.
  void give_up(std::span<const PageRange> pages, const Fence& until, bool unmap);
  /// Ends the need for those of these pages that nobody uses.
  void forget_unused(std::span<const PageRange> pages);

  /// Pages that a call is mapping because it keeps them: counted, but not there yet. Others that need them
  /// wait for it.
  void set_flying(std::span<const PageRange> pages, bool flying) noexcept;
  bool any_flying() const noexcept { return any_flying_; }
  bool flying(const PageRange& pages) const noexcept;

  /// Pages that show a scratch's page: nobody maps them.
  void set_in_scratch(std::span<const PageRange> pages, bool in) noexcept;
  bool any_in_scratch() const noexcept { return in_scratch_count_ != 0; }
  bool in_scratch(const PageRange& pages) const noexcept;

  /// Those that are open. This needs the keeping mutex.
  std::vector<std::shared_ptr<Scratch>>& scratches() noexcept { return scratches_; }

  /// A pool that is closed has no pager that would give back what was given up. Without any lock.
  void give_back_if_closed() const;

 private:
  void end_scratches();

  const std::shared_ptr<Pager> pager_;
  const std::shared_ptr<Lease> lease_;
  Mutex keeping_{LockRank::keeping};
  std::vector<std::shared_ptr<Scratch>> scratches_;
  FairMutex ahead_{LockRank::range_ahead};
  std::atomic<bool> ended_{false};  // set under the mutex
  Mutex mutex_{LockRank::range};    // guards what follows
  std::vector<Users> users_;        // of each page
  std::vector<bool> flying_;
  bool any_flying_ = false;
  std::vector<bool> in_scratch_;
  std::uint64_t in_scratch_count_ = 0;
  std::vector<PageRange> announced_, unneeded_;  // scratch of give_up()
};

}  // namespace vmm
