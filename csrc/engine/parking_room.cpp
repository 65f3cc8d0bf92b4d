// Room on the device: whether more is coming when what is parked is copied to tiers, and who waits for it.
#include <algorithm>

#include "engine/pager.h"
#include "engine/parking_needs.h"

namespace vmm {
namespace {

constexpr Nanoseconds look_again = std::chrono::milliseconds(1);
constexpr Nanoseconds hangs_after = std::chrono::seconds(5);  // without the end of any transfer

}  // namespace

/// Whether something can be copied of it, which makes room unless the unit is spare.
bool Parking::can_clean(const Unit& one) const {
  return cleanable(one) && one.dirty != 0 && !one.stuck && !pool().epochs().waits_for_open_epoch(one.until);
}

/// Whether transfers are under way, or somebody waits for some, of which none has ended for so long that
/// nobody should wait for memory that they would make.
bool Parking::hangs() const {
  return (in_flight_ != 0 || demanded_.count != 0) && pool().clock().now() - moved_at_ > hangs_after;
}

/// So many bytes should be cleaned, because somebody waits for them.
void Parking::demand(Bytes wanted) {
  if (in_flight_ == 0 && demanded_.count == 0) moved_at_ = pool().clock().now();
  demanded_ = std::max(demanded_, wanted);
}

/// Whether pages are being cleaned, or there are some that can be.
bool Parking::any_to_clean() const {
  if (shut_ || hangs()) return false;
  bool any = false, copies = !places_.empty() || tiers_->free_places() != 0;
  for (const auto& [id, one] : units_) {
    if (cleanable(one) && one.moving != 0) return true;
    any |= can_clean(one) && !one.spare;
    if ((one.phase == Phase::running || one.spare) && !copies)
      copies = std::ranges::any_of(one.pages, [](const Page& page) { return page.copied; });
  }
  return any && copies;
}

bool Parking::make_room(Bytes wanted) {
  {
    const std::lock_guard lock(mutex_);
    const auto ahead = [](const auto& each) {
      return each.second.phase == Phase::loading && !each.second.urgent;
    };
    if (hangs()) {
      demanded_ = {};  // who asks again waits again
      return false;
    }
    // What is loaded ahead is kept until that is over, and may be taken then.
    if (!any_to_clean() && (shut_ || std::ranges::none_of(units_, ahead))) return false;
    demand(wanted);
  }
  notify();
  return true;
}

void Parking::await() {
  {
    std::unique_lock lock(mutex_);
    pool().clock().wait(lock, moved_, look_again);
  }
  notify();  // a tier that hangs tells nobody
}

}  // namespace vmm
