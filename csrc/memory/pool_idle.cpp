// Mappings that nobody has needed for a while, given back so that others can have the memory.
#include <algorithm>
#include <utility>

#include "memory/pool.h"

namespace vmm {

void Pool::note_idle() {
  if (!may_idle_.exchange(true)) wake_pager();
}

/// Also marks what is needed by nobody now, for the next time.
std::vector<Pool::Unmapping> Pool::choose_idle() {
  std::vector<Unmapping> out;
  last_uses_.refresh();
  for (auto& [id, reservation] : reservations_) {
    Unmapping idle{reservation.get(), {}};
    reservation->table.age([&](PageIndex page) {
      if (last_uses_.over(reservation->table[page].last_use)) idle.pages.push_back(page);
    });
    std::ranges::reverse(idle.pages);  // ascending: neighbours are unmapped by one call
    if (!idle.pages.empty()) out.push_back(std::move(idle));
  }
  return out;
}

void Pool::give_back_idle() {
  fork_guard_.require_parent("this pool");
  epochs_.poll();
  may_idle_ = false;  // first: what comes to idle meanwhile must be noted
  Retirements idle;
  {
    std::lock_guard lock(mutex_);
    idle = prepared(choose_idle());
    for (const auto& [what, fence, intact] : idle)
      for (PageIndex page : what.pages) what.reservation->table.move(page, VirtualState::retiring);
    in_transit_ += size(idle);
    for (const auto& [id, reservation] : reservations_)
      if (!reservation->table.reclaimable(Need::none).empty()) may_idle_ = true;
  }
  // Not what lies free besides: that may have been created ahead.
  if (const Bytes unmapped = unmap_victims(std::move(idle)); unmapped.count != 0)
    release_free(unmapped, false);
}

}  // namespace vmm
