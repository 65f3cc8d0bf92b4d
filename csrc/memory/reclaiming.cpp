#include "memory/reclaiming.h"

#include <algorithm>
#include <iterator>
#include <map>

#include "base/error.h"

namespace vmm {

void Reclaiming::make_room(Bytes asked, const Tenant& tenant, const Shortage& shortage, Need whose,
                           Wait& wait) {
  // 1. Nothing is touched unless it is enough.
  ground_.epochs.poll();
  require_obtainable(asked, tenant.id, whose);
  // 2. Idle reservations leave runs of whole windows, which the next attempt takes as they are where it can.
  // Other free pages go back to the driver here, in exchange for budget.
  Bytes made = unmapping_.release(shortage.nobodys);
  const auto lacking = [&] { return saturating_sub(shortage.lacking, made); };
  if (lacking().count != 0) made += reclaim(lacking(), Need::none);
  if (lacking().count != 0) made += unmapping_.release(shortage.strays);
  if (lacking().count != 0) made += reclaim(lacking(), whose);
  if (made.count != 0) return;
  // 3. Nothing could be had now: perhaps somebody else has made room, or will.
  const bool others_have = ground_.under_lock([&] {
    return tables_.allowance().left() >= shortage.to_create || tables_.physical().freed() != shortage.freed;
  });
  if (others_have || (whose == Need::kept && await_coming(whose, wait))) return;
  std::lock_guard lock(ground_.mutex);
  throw OutOfPages(figures(asked, tenant), "what is reclaimable is still in use by unfinished work");
}

bool Reclaiming::relieve_mappings(Need whose, Wait& wait) {
  constexpr std::uint64_t plenty_fraction = 16;
  if (whose == Need::none) return false;
  // 1. Unmap what was given up and is over.
  const std::uint64_t before = ground_.counters.pages_unmapped.get();
  drain_retired();
  if (ground_.counters.pages_unmapped.get() != before) return true;
  // 2. End idle reservations: at least one, or whoever asks for more than plenty would ask for ever.
  const std::uint64_t plenty = ground_.driver->capabilities().max_mappings / plenty_fraction;
  if (end_an_idle_reservation()) {
    while (ground_.driver->mappings_left() < plenty && end_an_idle_reservation()) {
    }
    return true;
  }
  // 3. Unmap an eighth of what is needed less.
  const Bytes reclaimable = ground_.under_lock([&] { return tables_.mapped().reclaimable(); });
  if (reclaim(std::max(reclaimable / 8, 16_MiB), whose).count != 0) return true;
  // 4. Wait for what will be over.
  return whose == Need::kept && await_moment(wait);
}

struct Reclaiming::View {
  Snapshot snapshot;
  std::vector<Reservation*> reservations;
};

/// Shows the reservations as the policy sees them; with `only_those_that_may_end`, only idle ones that have
/// pages, none of which any work may still use. The caller holds the lock.
Reclaiming::View Reclaiming::view(bool only_those_that_may_end) {
  View view;
  tables_.last_uses().refresh();
  std::map<const Tenant*, std::size_t> places;
  for (const auto& [id, tenant] : tables_.tenants().all()) {
    places[tenant.get()] = places.size();
    view.snapshot.owners.push_back({tenant->terms.priority, tenant->borrowed()});
  }
  for (const auto& [id, entry] : tables_.reservations()) {
    Reservation& reservation = *entry;
    const PageTable& table = reservation.table;
    if (only_those_that_may_end && (reservation.leased || table.resident().count == 0 ||
                                    !ground_.epochs.complete(reservation.idle_fence)))
      continue;
    Holding holding{reservation.leased,
                    reservation.idle_since,
                    reservation.shape.page_bytes,
                    table.size(),
                    reservation.pages_per_window,
                    reservation.pages_per_extent(),
                    reservation.uses,
                    {},
                    &table.aged(),
                    [&](PageIndex page) { return tables_.over(reservation, page); },
                    places.at(&reservation.tenant)};
    for (Need need : reclaimable_needs)
      holding.reclaimable[static_cast<std::size_t>(need)] = &table.reclaimable(need);
    view.snapshot.holdings.push_back(std::move(holding));
    view.reservations.push_back(&reservation);
  }
  for (Need need : reclaimable_needs)
    view.snapshot.reclaimable[static_cast<std::size_t>(need)] = tables_.mapped().reclaimable(need);
  return view;
}

/// The memory of a shared page is free only when all that share it are unmapped, so those that are Resident
/// go together. The caller holds the lock.
Retirements Reclaiming::begin_retiring(const View& view, std::vector<Victim> victims) {
  std::map<Reservation*, std::vector<PageIndex>> others;
  for (const Victim& victim : victims)
    for (PageIndex page : victim.pages)
      for (const Alias& each : tables_.sharing().of(view.reservations[victim.holding]->table[page].content))
        if (each != Alias{view.reservations[victim.holding], page} &&
            each.reservation->table[each.page].state == VirtualState::resident)
          others[each.reservation].push_back(each.page);
  Retirements batch;
  for (Victim& victim : victims) {
    Reservation* const reservation = view.reservations[victim.holding];
    std::vector<PageIndex>& pages = victim.pages;
    if (const auto more = others.extract(reservation)) {
      pages.insert(pages.end(), more.mapped().begin(), more.mapped().end());
      std::ranges::sort(pages);
    }
    batch.emplace_back(*reservation, std::move(pages));
  }
  for (auto& [reservation, pages] : others) {
    std::ranges::sort(pages);
    batch.emplace_back(*reservation, std::move(pages));
  }
  tables_.begin_retiring(batch);
  return batch;
}

Bytes Reclaiming::reclaim(Bytes wanted, Need whose) {
  return unmapping_.unmap_victims(ground_.under_lock([&] {
    const View seen = view();
    return begin_retiring(seen, BorrowedFirst::choose(seen.snapshot, wanted, whose));
  }));
}

bool Reclaiming::end_an_idle_reservation() {
  Retirements victims;
  {
    std::lock_guard lock(ground_.mutex);
    const View seen = view(true);
    const auto longest_idle = policy_.longest_idle(seen.snapshot);
    if (!longest_idle) return false;
    Reservation& reservation = *seen.reservations[*longest_idle];
    std::vector<PageIndex> pages;
    for (std::uint32_t i = 0; i < reservation.table.size().count; ++i)
      if (reservation.table[{i}].state == VirtualState::resident) pages.push_back({i});
    // Only its own: others may need, and use, what they share with it.
    victims.emplace_back(reservation, std::move(pages));
    tables_.begin_retiring(victims);
  }
  unmapping_.unmap_victims(std::move(victims));
  return true;  // even where no memory is free, because others share it
}

void Reclaiming::pause(std::unique_lock<Mutex>& lock, Wait& wait) {
  wait.moment(lock);
  const Unlocked outside(lock);
  drain_retired();
}

/// Returns whether it helps to reclaim again: either there is something now, or it waited a moment because
/// memory will come without anybody's doing.
bool Reclaiming::await_coming(Need whose, Wait& wait) {
  ground_.epochs.poll();  // A capture that has ended holds nothing back.
  {
    std::lock_guard lock(ground_.mutex);
    if (!BorrowedFirst::choose(view().snapshot, {1}, whose).empty()) return true;
  }
  return await_moment(wait);
}

/// Waits a moment where memory, and with it mappings, will come without anybody's doing; else returns false.
bool Reclaiming::await_moment(Wait& wait) {
  std::unique_lock lock(ground_.mutex);
  const bool ending = tables_.last_uses().refresh() && tables_.mapped().reclaimable().count != 0;
  if (tables_.coming().count == 0 && !ending) return false;
  pause(lock, wait);
  return true;
}

Bytes Reclaiming::trim(Bytes wanted, bool wait, Need whose) {
  ground_.require_parent();
  ground_.epochs.poll();
  const auto anything_free = [&] {
    std::lock_guard lock(ground_.mutex);
    return tables_.physical().free_bytes().count != 0;
  };
  Wait waiting(ground_, "work that uses what nobody needs any more ends");
  Bytes given_back;
  try {
    for (;;) {
      given_back += unmapping_.release_free(wanted - given_back);
      if (given_back >= wanted) break;
      if (reclaim(wanted - given_back, whose).count != 0 || anything_free()) continue;
      if (!wait || !ground_.may_wait() || !await_coming(whose, waiting)) break;
    }
  } catch (const Error&) {  // The pager tries again what the driver refused, which is in the log.
    if (given_back.count == 0) throw;
  }
  return given_back;
}

bool Reclaiming::drain_retired(bool refused_too) {
  ground_.require_parent();
  ground_.epochs.poll();
  streams_.sweep();
  unmapping_.unmap(ground_.under_lock([&] { return tables_.take_over(refused_too); }));
  std::lock_guard lock(ground_.mutex);
  return tables_.retired().any_intact();
}

bool Reclaiming::finish_unmapping(const Reservation& reservation, std::span<const PageRange> ranges) {
  constexpr int most_moments = 16;
  drain_retired();
  std::unique_lock lock(ground_.mutex);
  const auto any = [&](auto is_in_the_way) {
    for (PageIndex page : each_page(ranges))
      if (reservation.table[page].state == VirtualState::retiring && is_in_the_way(page)) return true;
    return false;
  };
  const auto is_under_way = [&](PageIndex page) { return !tables_.retired().find(reservation, page); };
  Wait wait(ground_, "other threads unmap and release pages");
  for (int moment = 0; moment < most_moments; ++moment) {
    if (tables_.physical().releasing() == 0 && !any(is_under_way)) break;
    wait.moment(lock);
  }
  return !any([](PageIndex) { return true; });
}

bool Reclaiming::refused() const {
  std::lock_guard lock(ground_.mutex);
  return tables_.retired().any_refused();
}

void Reclaiming::age() {
  const auto lock = ground_.locked();
  aged_free_ = saturating_sub(tables_.age(), spare_);
}

bool Reclaiming::give_back_aged(Bytes at_most) {
  ground_.require_parent();
  ground_.epochs.poll();
  Retirements aged;
  Bytes unused;
  {
    std::lock_guard lock(ground_.mutex);
    const View seen = view();
    aged = begin_retiring(seen, policy_.aged(seen.snapshot, at_most));
    unused = std::min(aged_free_, at_most);
    aged_free_ -= unused;
  }
  const Bytes unmapped = unmapping_.unmap_victims(std::move(aged));
  unmapping_.release_free(unmapped + unused);
  if (unmapped + unused >= at_most) return true;
  std::lock_guard lock(ground_.mutex);
  ground_.signals.set_may_idle(tables_.physical().free_bytes() > spare_ ||
                               tables_.mapped().reclaimable(Need::none).count != 0 || streams_.any_ended());
  return false;
}

}  // namespace vmm
