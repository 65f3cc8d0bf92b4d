// Memory that nobody has needed for a while, given back so that others can have it.
#include <algorithm>
#include <utility>

#include "memory/pool.h"

namespace vmm {

void Pool::note_idle() {
  if (!may_idle_.exchange(true)) wake_pager();
}

void Pool::age() {
  fork_guard_.require_parent("this pool");
  std::lock_guard lock(mutex_);
  for (const auto& [id, reservation] : reservations_) reservation->table.age();
  const Bytes unused = physical_.take_least_free();
  aged_free_ = unused - std::min(unused, warmed_);
}

/// About so much of what has aged, and is not in use by unfinished work.
std::vector<Pool::Unmapping> Pool::choose_aged(Bytes at_most) {
  std::vector<Unmapping> out;
  Bytes found;
  last_uses_.refresh();
  for (auto& [id, reservation] : reservations_) {
    const PageBits& aged = reservation->table.aged();
    Unmapping pages{reservation.get(), {}};
    for (auto page = aged.last_before(reservation->table.size().count); page && found < at_most;
         page = aged.last_before(page->value)) {
      if (!last_uses_.over(reservation->table[*page].last_use)) continue;
      pages.pages.push_back(*page);
      found += reservation->shape.page_bytes;
    }
    std::ranges::reverse(pages.pages);  // ascending: neighbours are unmapped by one call
    if (!pages.pages.empty()) out.push_back(std::move(pages));
  }
  return out;
}

bool Pool::give_back_aged(Bytes at_most) {
  fork_guard_.require_parent("this pool");
  epochs_.poll();
  Retirements aged;
  Bytes unused;
  {
    std::lock_guard lock(mutex_);
    aged = begin_retiring(choose_aged(at_most));
    unused = std::min(aged_free_, at_most);
    aged_free_ -= unused;
  }
  const Bytes unmapped = unmap_victims(std::move(aged));
  release_free(unmapped + unused);
  if (unmapped + unused >= at_most) return true;
  std::lock_guard lock(mutex_);
  may_idle_ =
      physical_.free_bytes() > warmed_ || mapped_.reclaimable(Need::none).count != 0 || streams_.any_ended();
  return false;
}

}  // namespace vmm
