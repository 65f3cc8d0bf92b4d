// Pages on their way out of a reservation, and out of the pool.
#pragma once

#include <algorithm>
#include <cstdint>
#include <functional>
#include <list>
#include <optional>
#include <utility>
#include <vector>

#include "memory/fences.h"
#include "memory/handles.h"
#include "memory/reservation.h"

namespace vmm {

/// Retiring pages of one reservation. It has room for all their mappings from the beginning: where mappings
/// run out, so may the heap.
struct Retirement {
  /// `pages_` ascend.
  Retirement(Reservation& reservation_, std::vector<PageIndex> pages_, Fence fence_ = {})
      : reservation(&reservation_), pages(std::move(pages_)), fence(std::move(fence_)) {
    mappings.reserve(pages.capacity());
  }

  Bytes size() const { return reservation->shape.page_bytes * pages.size(); }
  bool has(const Reservation& of, PageIndex page) const {
    return reservation == &of && std::ranges::binary_search(pages, page);
  }

  Reservation* reservation;
  std::vector<PageIndex> pages;
  Fence fence;                 // when it is complete, they may be unmapped
  std::uint16_t last_use = 0;  // the fence's number: see LastUses
  bool to_system = false;      // their memory goes back to the driver as soon as it is free
  bool intact = true;  // mapped and accessible as before, so that they may become Resident again; else the
                       // driver has refused to unmap them: that is tried again, but nobody waits for it
  std::vector<PageMapping> mappings;
  std::size_t done = 0;  // of the mappings, by the driver
  Bytes in_transit;      // so much of it counts as that
};

/// A list, so that what was refused can be put back without memory.
using Retirements = std::list<Retirement>;

/// How much of the batch counts as in transit.
Bytes in_transit(const Retirements& batch);

/// What waits to be unmapped. Not thread-safe: the pool's lock guards it.
class Retired {
 public:
  explicit Retired(const Epochs& epochs) : epochs_(epochs) {}

  void add(Retirements& batch) noexcept { list_.splice(list_.end(), batch); }
  /// Those that are over; with `refused_too`, also what the driver has refused before.
  Retirements take_over(bool refused_too);
  /// The fence of a page that is wanted again and can be called back. None where its unmapping has begun, or
  /// `must_go` says that it must be awaited: then this throws Error where only the caller can close the epoch
  /// that it waits for.
  std::optional<Fence> fence_of(const Reservation& reservation, PageIndex page, bool must_go) const;
  /// The page, which has such a fence, is not to be unmapped.
  void call_back(const Reservation& reservation, PageIndex page) noexcept;

  std::size_t size() const noexcept { return list_.size(); }
  bool any_intact() const { return std::ranges::any_of(list_, &Retirement::intact); }
  bool any_refused() const { return !std::ranges::all_of(list_, &Retirement::intact); }
  bool any_refused(const Reservation& reservation) const;
  /// Throws DriverError where the driver refuses to unmap this page: who wants it would wait for ever.
  void require_not_refused(const Reservation& reservation, PageIndex page) const;
  /// What the page waits with; none where its unmapping is under way.
  const Retirement* find(const Reservation& reservation, PageIndex page) const;
  /// Whether it will be unmapped without anybody's doing.
  bool comes(const Retirement& entry) const {
    return entry.intact && !epochs_.waits_for_open_epoch(entry.fence);
  }
  /// The sum of size(entry) over all that wait.
  Bytes sum(const std::function<Bytes(const Retirement&)>& size) const;

 private:
  const Epochs& epochs_;
  Retirements list_;
};

/// Free pages that are being given back to the driver.
struct Releasing {
  std::vector<PhysicalPageId> pages;
  std::vector<CreatedPage> handles;  // theirs; empty ones have been released
  Bytes size;
};

/// Pages of a run that no window owns, which are being created.
struct Filling {
  RunId run;
  std::vector<std::pair<PhysicalPageId, Place>> pages;
  std::vector<CreatedPage> created;  // for the first of them
  Bytes size;
};

}  // namespace vmm
