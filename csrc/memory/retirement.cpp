#include "memory/retirement.h"

#include <iterator>
#include <string>

#include "base/error.h"

namespace vmm {

Bytes in_transit(const Retirements& batch) {
  Bytes sum;
  for (const Retirement& entry : batch) sum += entry.in_transit;
  return sum;
}

Retirements Retired::take_over(bool refused_too) {
  Retirements over;
  for (auto entry = list_.begin(); entry != list_.end();) {
    const auto next = std::next(entry);
    if ((entry->intact || refused_too) && epochs_.complete(entry->fence))
      over.splice(over.end(), list_, entry);
    entry = next;
  }
  return over;
}

std::optional<Fence> Retired::fence_of(const Reservation& reservation, PageIndex page, bool must_go) const {
  const Retirement* entry = find(reservation, page);
  if (entry == nullptr || !entry->intact) return std::nullopt;
  if (!must_go) return entry->fence;
  // Work in flight may still read it.
  if (epochs_.waits_for_open_epoch(entry->fence))
    throw Error("page " + std::to_string(page.value) +
                " was released in an epoch that is still open: end it there first");
  return std::nullopt;
}

void Retired::call_back(const Reservation& reservation, PageIndex page) noexcept {
  const auto entry =
      std::ranges::find_if(list_, [&](const Retirement& each) { return each.has(reservation, page); });
  entry->pages.erase(std::ranges::lower_bound(entry->pages, page));
  if (entry->pages.empty()) list_.erase(entry);  // An empty one would outlive the reservation.
}

bool Retired::any_refused(const Reservation& reservation) const {
  return std::ranges::any_of(
      list_, [&](const Retirement& entry) { return !entry.intact && entry.reservation == &reservation; });
}

void Retired::require_not_refused(const Reservation& reservation, PageIndex page) const {
  if (const Retirement* entry = find(reservation, page); entry != nullptr && !entry->intact)
    throw DriverError("page " + std::to_string(page.value) +
                      " is to be unmapped first, which the driver refuses: see the log");
}

const Retirement* Retired::find(const Reservation& reservation, PageIndex page) const {
  for (const Retirement& entry : list_)
    if (entry.has(reservation, page)) return &entry;
  return nullptr;
}

Bytes Retired::sum(const std::function<Bytes(const Retirement&)>& size) const {
  Bytes sum;
  for (const Retirement& entry : list_) sum += size(entry);
  return sum;
}

}  // namespace vmm
