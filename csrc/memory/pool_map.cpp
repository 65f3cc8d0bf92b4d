// Making pages Resident.
#include <algorithm>
#include <string>

#include "base/error.h"
#include "memory/pool.h"

namespace vmm {
MapResult Pool::map(Reservation& reservation, std::span<const PageRange> ranges, const MapOptions& options) {
  fork_guard_.require_parent("this pool");
  MapResult result;
  std::vector<PageIndex> kept_here;
  bool refused = false;  // by the device
  Bytes in_vain;         // what it did create then
  try {
    for (;;) {
      MapPlan plan;
      // 1. Decide, and claim all that is missing or nothing.
      Shortage shortage;
      Bytes asked;
      {
        std::lock_guard lock(mutex_);
        require_open();
        check_ranges(reservation, ranges);
        shortage = plan_map(reservation, ranges, options, plan, kept_here);
        asked = reservation.shape.page_bytes * plan.claims.size();
        if (shortage.lacking.count == 0 && options.need != Need::kept) in_transit_ += plan.in_transit = asked;
      }
      if (shortage.lacking.count != 0) {
        if (options.need == Need::none) throw OutOfPages(figures(asked), "nothing may be reclaimed for this");
        try {
          make_room(asked, shortage, options.need);
        } catch (const OutOfPages& error) {
          // What the device refused somebody a while ago it may have now: whoever must have it asks again.
          if (refused || options.need != Need::kept || error.figures().refused.empty()) throw;
          forget_device_limit();
        }
        continue;
      }
      // 2. Work outside the lock. 3. Commit.
      if (!plan.claims.empty()) {
        try {
          driver_->together([&] { call_driver(reservation, plan, options); });
        } catch (const MappingLimit&) {
          roll_back(reservation, plan);
          if (!relieve_mappings(options.need)) throw;
          continue;
        } catch (const DriverOutOfMemory& error) {
          in_vain += reservation.shape.page_bytes * plan.created.size();
          note_refusal(roll_back(reservation, plan), asked, error);
          refused = true;
          continue;  // as under a budget that is as short
        } catch (...) {
          roll_back(reservation, plan);
          throw;
        }
        commit(reservation, plan, options);
        if (options.need == Need::kept)
          for (const Claim& claim : plan.claims) kept_here.push_back(claim.page);
        result.mapped += Pages{plan.claims.size()};
      }
      if (!plan.blocked || !options.wait) return result;
      result.waited = true;
      wait_until_unblocked(reservation, ranges);
    }
  } catch (...) {
    if (refused) release_in_vain(in_vain);
    std::lock_guard lock(mutex_);
    for (PageIndex page : kept_here)
      if (reservation.table[page].state == VirtualState::resident)
        reservation.table.set_need(page, Need::none);
    if (options.need == Need::kept) note_given_up(true);  // what was created, too
    note_idle();
    throw;
  }
}

/// Back to a full device, where others need what this call has no use for. What is refused stays, free.
void Pool::release_in_vain(Bytes created) noexcept {
  try {
    release_free(created);
  } catch (const std::exception& error) {
    log_.write(LogLevel::warning, "release: ", error.what());
  }
}

/// Returns the bytes that lack; with any lacking, nothing is claimed. What is Resident already is
/// kept at once, and noted in `kept_here`, so that making room for the rest does not take it.
Pool::Shortage Pool::plan_map(Reservation& reservation, std::span<const PageRange> ranges,
                              const MapOptions& options, MapPlan& plan, std::vector<PageIndex>& kept_here) {
  Bytes to_create;
  Shortage shortage;
  auto undo = [&] {
    for (const Claim& claim : plan.claims) {
      reservation.table.move(claim.page, VirtualState::unmapped);
      physical_.move(claim.physical, claim.create ? PhysicalState::absent : PhysicalState::free);
      drop_window_if_unused(reservation, claim.page);
    }
  };
  try {
    for_each_page(ranges, [&](PageIndex page) {
      const VirtualPage& entry = reservation.table[page];
      if (entry.state == VirtualState::retiring && options.wait) rescue(reservation, page);
      if (entry.state == VirtualState::unmapped) {
        if (plan.claims.size() == options.at_most.count) return false;
        if (!claim(reservation, page, plan)) {
          plan.blocked = true;
        } else if (plan.claims.back().create) {
          to_create += reservation.shape.page_bytes;
        }
      } else if (entry.state != VirtualState::resident) {
        plan.blocked = true;
      } else if (entry.need < options.need) {
        if (options.need == Need::kept) kept_here.push_back(page);
        reservation.table.set_need(page, options.need);
      }
      return true;
    });
    kept_here.reserve(kept_here.size() + plan.claims.size());
    plan.reserve_for_undo(reservation);
    contents_.reserve(plan.claims.size());
    if (to_create.count == 0) return {};
    // The budget's other owners are pressed for what will be used, not for a guess; and for a look-ahead the
    // budget is not even asked for more than it has, or it would tell when there is more.
    const Bytes left = options.need == Need::none ? budget_left() : device_left();
    if (to_create <= left && budget_->take(to_create, listener_, options.need > Need::guess)) {
      taken_ += to_create;
      peak_taken_ = std::max(peak_taken_, taken_);
      return {};
    }
    contents_.give_up(plan.claims.size());
    shortage.to_create = to_create;
    shortage.lacking = std::max(saturating_sub(to_create, budget_left()), reservation.shape.page_bytes);
    // What the plan could use it has claimed.
    if (options.need != Need::none) {
      shortage.nobodys = physical_.some_free(shortage.lacking, false);
      shortage.strays = physical_.some_free(shortage.lacking, true);
    }
  } catch (...) {
    undo();
    throw;
  }
  undo();
  shortage.freed = physical_.freed();
  return shortage;
}

/// With all the memory that undoing it will need: where mappings run out, so may the heap.
void Pool::MapPlan::reserve_for_undo(Reservation& reservation) {
  if (claims.empty()) return;
  created.reserve(claims.size());
  mappings.reserve(claims.size());
  refused.push_back({{&reservation, {}}, {}, false});
  refused.back().what.pages.reserve(claims.size());
  refused.back().what.mappings.reserve(claims.size());
}

/// False when the page's place is still being released.
bool Pool::claim(Reservation& reservation, PageIndex page, MapPlan& plan) {
  RunId& run = reservation.window_runs[reservation.window_of(page)];
  if (!run.valid()) run = physical_.take_run(reservation.shape.page_bytes);
  const PhysicalPageId id = physical_.page_at(run, reservation.position_of(page));
  const PhysicalPage& physical = physical_[id];
  if (physical.state == PhysicalState::releasing) return false;
  const bool create = physical.state == PhysicalState::absent;
  const bool dirty = physical.holds.valid()
                         ? physical.holds != reservation.shape.kind || reservation.shape.zeroed
                         : !driver_->capabilities().fresh_pages_are_zero;
  plan.claims.push_back({page, id, physical_.place_of(id), physical.handle.get(), create, dirty});
  physical_.move(id, PhysicalState::busy);
  reservation.table.move(page, VirtualState::mapping);
  return true;
}

void Pool::call_driver(Reservation& reservation, MapPlan& plan, const MapOptions& options) {
  for (Claim& claim : plan.claims) {
    if (!claim.create) continue;
    plan.created.emplace_back(*driver_, reservation.shape.page_bytes, claim.place);
    claim.handle = plan.created.back().get();
  }
  for (const Claim& claim : plan.claims)
    plan.mappings.push_back({reservation.address_of(claim.page), claim.handle, reservation.shape.page_bytes});
  driver_->map(plan.mappings);
  plan.mapped = true;
  driver_->set_access(plan.mappings);
  zero_claims(reservation, plan, options);
}

void Pool::zero_claims(const Reservation& reservation, const MapPlan& plan, const MapOptions& options) {
  const Bytes page_bytes = reservation.shape.page_bytes;
  std::vector<MemoryRange> ranges;
  auto append = [&](Address start, Bytes size) {
    if (!ranges.empty() && ranges.back().start + ranges.back().size == start)
      ranges.back().size += size;
    else
      ranges.push_back({start, size});
  };
  auto skip = options.overwritten.begin();
  for (const Claim& claim : plan.claims) {
    if (!claim.zero) continue;
    Bytes at = page_bytes * claim.page.value;
    const Bytes end = at + page_bytes;
    while (skip != options.overwritten.end() && skip->offset + skip->size <= at) ++skip;
    for (auto next = skip; at < end; ++next) {
      const bool none = next == options.overwritten.end() || next->offset >= end;
      const Bytes stop = none ? end : std::max(at, next->offset);
      if (stop > at) append(reservation.base + at, stop - at);
      if (none) break;
      at = next->offset + next->size;
    }
    counters_.pages_zeroed.add();
  }
  if (!ranges.empty()) driver_->zero(ranges, {});
}

void Pool::become_resident(Reservation& reservation, const Claim& claim) {
  reservation.table.set_content(claim.page, contents_.add(reservation.shape.kind, claim.physical));
  reservation.table.move(claim.page, VirtualState::resident);
  PhysicalPage& physical = physical_[claim.physical];
  physical.holds = reservation.shape.kind;
  physical.mapped_by = {reservation.id, claim.page};
  physical_.move(claim.physical, PhysicalState::mapped);
}

void Pool::commit(Reservation& reservation, MapPlan& plan, const MapOptions& options) {
  std::lock_guard lock(mutex_);
  auto created = plan.created.begin();
  for (const Claim& claim : plan.claims) {
    if (claim.create) physical_[claim.physical].handle = std::move(*created++);
    become_resident(reservation, claim);
    reservation.table.set_need(claim.page, options.need);
  }
  counters_.pages_created.add(plan.created.size());
  if (!plan.created.empty()) {
    created_.page_bytes = reservation.shape.page_bytes;
    created_.size += created_.page_bytes * plan.created.size();
  }
  in_transit_ -= plan.in_transit;
  changed_.notify_all();
  if (options.need == Need::none) note_idle();
}

/// Pages that were created stay, free: they are paid for, and the next try needs them. Where even the
/// unmapping fails, the page is Retiring and the pager tries again. Returns the bytes that were not created.
Bytes Pool::roll_back(Reservation& reservation, MapPlan& plan) {
  counters_.driver_failures.add();
  std::size_t unmapped = plan.claims.size();
  if (plan.mapped) {
    try {
      driver_->unmap(plan.mappings, unmapped);
    } catch (const std::exception& error) {
      log_.write(LogLevel::warning, "undoing a failed map: ", error.what());
    }
  }
  std::unique_lock lock(mutex_);
  auto created = plan.created.begin();
  Bytes not_created;
  for (std::size_t i = 0; i < plan.claims.size(); ++i) {
    const Claim& claim = plan.claims[i];
    const bool made = claim.create && created != plan.created.end();
    if (made) physical_[claim.physical].handle = std::move(*created++);
    if (i >= unmapped) {
      const ByteKind holds = physical_[claim.physical].holds;  // it may not have been zeroed
      become_resident(reservation, claim);
      physical_[claim.physical].holds = holds;
      reservation.table.move(claim.page, VirtualState::retiring);
      plan.refused.back().what.pages.push_back(claim.page);
      continue;
    }
    contents_.give_up(1);
    reservation.table.move(claim.page, VirtualState::unmapped);
    if (claim.create && !made) {
      physical_.move(claim.physical, PhysicalState::absent);
      give_back(reservation.shape.page_bytes);
      not_created += reservation.shape.page_bytes;
    } else {
      physical_.move(claim.physical, PhysicalState::free);
    }
    drop_window_if_unused(reservation, claim.page);
  }
  const bool refused = unmapped < plan.claims.size();
  if (refused) retired_.splice(retired_.end(), plan.refused);
  in_transit_ -= plan.in_transit;
  changed_.notify_all();
  lock.unlock();
  if (refused) wake_pager();
  return not_created;
}

/// The device would not create so much. Where it refused something else, no room that could be made would
/// help: throws OutOfPages.
void Pool::note_refusal(Bytes refused, Bytes asked, const DriverOutOfMemory& error) {
  std::lock_guard lock(mutex_);
  if (refused.count == 0) {
    MemoryFigures figures = figures_locked(asked);
    figures.refused = error.what();
    throw OutOfPages(figures, "");
  }
  device_limit_.refused(taken_, error.what(), clock_->now());
  log_.write(LogLevel::info, std::string("the device has less than the budget allows: ") + error.what());
}

void Pool::drop_window_if_unused(Reservation& reservation, PageIndex page) {
  RunId& run = reservation.window_runs[reservation.window_of(page)];
  if (!run.valid() || physical_.run(run).in_use != 0) return;
  physical_.give_back_run(run);
  run = {};
}

void Pool::wait_until_unblocked(Reservation& reservation, std::span<const PageRange> ranges) {
  for (bool first = true;; first = false) {
    drain_retired(first);  // what the driver has refused before it may unmap for somebody who needs the page
    std::unique_lock lock(mutex_);
    bool blocked = physical_.releasing() != 0;
    for_each_page(ranges, [&](PageIndex page) {
      const VirtualState state = reservation.table[page].state;
      blocked |= state == VirtualState::mapping || state == VirtualState::retiring;
      if (state == VirtualState::retiring) require_not_refused(reservation, page);
      return !blocked;
    });
    if (!blocked) return;
    clock_->wait(lock, changed_, recheck);
  }
}

}  // namespace vmm
