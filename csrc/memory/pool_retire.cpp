// Letting go of pages that work in flight may still touch, and calling them back.
#include <algorithm>
#include <string>

#include "base/error.h"
#include "memory/pool.h"

namespace vmm {

void Pool::retire(Reservation& reservation, std::span<const PageRange> ranges, Fence fence) {
  fork_guard_.require_parent("this pool");
  std::lock_guard lock(mutex_);
  check_ranges(reservation, ranges);
  Retirements retirement;
  retirement.push_back({{&reservation, {}}, std::move(fence), true});
  std::vector<PageIndex>& pages = retirement.back().what.pages;
  for_each_page(ranges, [&](PageIndex page) {
    if (reservation.table[page].state == VirtualState::resident) pages.push_back(page);
    return true;
  });
  std::ranges::sort(pages);  // the ranges may overlap, in any order
  pages.erase(std::unique(pages.begin(), pages.end()), pages.end());
  if (pages.empty()) return;
  retirement.back().what.mappings.reserve(pages.size());
  retired_.splice(retired_.end(), retirement);
  for (PageIndex page : retired_.back().what.pages) reservation.table.move(page, VirtualState::retiring);
}

bool Pool::drain_retired(bool refused_too) {
  fork_guard_.require_parent("this pool");
  epochs_.poll();
  streams_.sweep();
  Retirements over;
  {
    std::lock_guard lock(mutex_);
    for (auto entry = retired_.begin(); entry != retired_.end();) {
      const auto next = std::next(entry);
      if ((entry->intact || refused_too) && epochs_.complete(entry->fence))
        over.splice(over.end(), retired_, entry);
      entry = next;
    }
    in_transit_ += size(over);
  }
  unmap(std::move(over));
  std::lock_guard lock(mutex_);
  return std::ranges::any_of(retired_, &Retirement::intact);
}

bool Pool::refused() const {
  std::lock_guard lock(mutex_);
  return !std::ranges::all_of(retired_, &Retirement::intact);
}

/// Who wants a page that the driver does not unmap would wait for ever.
void Pool::require_not_refused(const Reservation& reservation, PageIndex page) const {
  for (const Retirement& entry : retired_)
    if (!entry.intact && entry.what.reservation == &reservation &&
        std::ranges::binary_search(entry.what.pages, page))
      throw DriverError("page " + std::to_string(page.value) +
                        " is to be unmapped first, which the driver refuses: see the log");
}

/// A Retiring page that its owner wants back becomes Resident again, bytes and all; whoever ordered the old
/// reads orders the new writes. Not where the page must read as zeros: work in flight may still read it, so
/// its fence is waited for, and an epoch that only the caller can close is not waited for but refused.
void Pool::rescue(Reservation& reservation, PageIndex page) {
  const PhysicalPageId physical = contents_[reservation.table[page].content].page;
  if (physical_[physical].state != PhysicalState::mapped) return;  // the unmapping is under way
  for (auto entry = retired_.begin(); entry != retired_.end(); ++entry) {
    auto& pages = entry->what.pages;
    if (entry->what.reservation != &reservation || !entry->intact) continue;
    const auto found = std::ranges::lower_bound(pages, page);
    if (found == pages.end() || *found != page) continue;
    if (reservation.shape.zeroed) {
      if (epochs_.waits_for_open_epoch(entry->fence))
        throw Error("page " + std::to_string(page.value) +
                    " was released in an epoch that is still open: call step or end before using it again");
      return;
    }
    const std::uint16_t last_use = last_uses_.number(entry->fence);  // who read it may read it still
    reservation.table.move(page, VirtualState::resident);
    reservation.table.set_last_use(page, last_use);
    pages.erase(found);
    if (pages.empty()) retired_.erase(entry);  // or it would outlive the reservation
    return;
  }
}

}  // namespace vmm
