// What reclaiming does: unmaps pages, and gives free ones back to the driver.
#include <algorithm>
#include <exception>

#include "base/error.h"
#include "memory/pool.h"

namespace vmm {

Bytes Pool::size(const Retirements& batch) {
  Bytes sum;
  for (const Retirement& entry : batch)
    sum += entry.what.reservation->shape.page_bytes * entry.what.pages.size();
  return sum;
}

/// Resident pages become Retiring, and in transit, with all the memory that unmapping will need: from here on
/// it cannot fail for want of any. Under the lock.
Pool::Retirements Pool::begin_retiring(std::vector<Unmapping> victims) {
  Retirements batch;
  for (Unmapping& victim : victims) {
    victim.mappings.reserve(victim.pages.size());
    batch.push_back({std::move(victim), {}, true});
  }
  for (const Retirement& entry : batch)
    for (PageIndex page : entry.what.pages) entry.what.reservation->table.move(page, VirtualState::retiring);
  in_transit_ += size(batch);
  return batch;
}

/// Unmaps Retiring pages, which the caller has counted as in transit. Those the driver refuses are retired
/// again. Throws only when none was unmapped, and the refusal is news.
Bytes Pool::unmap(Retirements batch) {
  if (batch.empty()) return {};
  const Bytes in_transit = size(batch);
  {
    std::lock_guard lock(mutex_);
    for (Retirement& entry : batch) begin_unmap(entry.what);
  }
  std::exception_ptr failure;
  bool news = false;
  for (Retirement& entry : batch) news |= !unmap_in_driver(entry, failure) && entry.intact;
  Bytes freed;
  Releasing exported;
  {
    std::lock_guard lock(mutex_);
    std::vector<PhysicalPageId> pages;
    for (auto entry = batch.begin(); entry != batch.end();) {
      const auto next = std::next(entry);
      freed += entry->what.reservation->shape.page_bytes * entry->what.done;
      end_unmap(batch, entry, pages);
      entry = next;
    }
    in_transit_ -= in_transit;
    exported = begin_release(std::move(pages));
    changed_.notify_all();
  }
  release_exported(std::move(exported));
  if (news && freed.count == 0) std::rethrow_exception(failure);
  return freed;
}

bool Pool::unmap_in_driver(Retirement& entry, std::exception_ptr& failure) noexcept {
  try {
    driver_->unmap(entry.what.mappings, entry.what.done);
    return true;
  } catch (const std::exception& error) {
    failure = std::current_exception();
    counters_.driver_failures.add();
    if (entry.intact) log_.write(LogLevel::warning, "unmap, to be tried again: ", error.what());
    return false;
  }
}

/// As unmap(), of pages that were not retired before: nobody would look after what the driver refuses.
Bytes Pool::unmap_victims(Retirements victims) {
  const Bytes all = size(victims);
  try {
    const Bytes freed = unmap(std::move(victims));
    if (freed < all) wake_pager();
    return freed;
  } catch (const std::exception&) {
    wake_pager();
    throw;
  }
}

void Pool::begin_unmap(Unmapping& what) {
  what.mappings.clear();
  what.done = 0;
  for (PageIndex page : what.pages) {
    const PhysicalPageId id = contents_[what.reservation->table[page].content].page;
    physical_.move(id, PhysicalState::busy);
    what.mappings.push_back(
        {what.reservation->address_of(page), physical_[id].handle.get(), physical_.page_bytes(id)});
  }
}

void Pool::end_unmap(Retirements& batch, Retirements::iterator entry, std::vector<PhysicalPageId>& exported) {
  Unmapping& what = entry->what;
  Reservation& reservation = *what.reservation;
  for (std::size_t i = 0; i < what.pages.size(); ++i) {
    const PageIndex page = what.pages[i];
    const ContentId content = reservation.table[page].content;
    const PhysicalPageId id = contents_[content].page;
    if (i >= what.done) {
      physical_.move(id, PhysicalState::mapped);
      continue;
    }
    contents_.drop(content);
    reservation.table.set_content(page, {});
    reservation.table.move(page, VirtualState::unmapped);
    physical_[id].mapped_by = {};
    physical_.move(id, PhysicalState::free);
    if (physical_[id].exported) exported.push_back(id);
    drop_window_if_unused(reservation, page);
    counters_.pages_unmapped.add();
  }
  if (what.done != 0) {
    note_given_up(true);
    note_idle();
  }
  what.pages.erase(what.pages.begin(), what.pages.begin() + static_cast<std::ptrdiff_t>(what.done));
  if (what.pages.empty()) return erase_if_empty(reservation);
  entry->intact = false;
  entry->fence = {};
  retired_.splice(retired_.end(), batch, entry);
}

/// Those that are still free.
Bytes Pool::release_pages(std::vector<PhysicalPageId> pages) {
  Releasing what;
  {
    std::lock_guard lock(mutex_);
    std::erase_if(pages, [&](PhysicalPageId page) { return physical_[page].state != PhysicalState::free; });
    what = begin_release(std::move(pages));
  }
  return release(std::move(what));
}

Bytes Pool::release_free(Bytes wanted) {
  Releasing what;
  {
    std::lock_guard lock(mutex_);
    what = begin_release(physical_.some_free(wanted));
  }
  return release(std::move(what));
}

/// Takes free pages away from everybody.
Pool::Releasing Pool::begin_release(std::vector<PhysicalPageId> pages) {
  Releasing what{std::move(pages), {}, {}};
  what.handles.reserve(what.pages.size());
  for (PhysicalPageId page : what.pages) what.size += physical_.page_bytes(page);
  in_transit_ += what.size;
  for (PhysicalPageId page : what.pages) {
    what.handles.push_back(std::move(physical_[page].handle));
    physical_.move(page, PhysicalState::releasing);
  }
  return what;
}

/// Throws only when none was given back.
Bytes Pool::release(Releasing what) {
  auto& [pages, handles, in_transit] = what;
  if (pages.empty()) return {};
  std::exception_ptr failure;
  for (CreatedPage& handle : handles) {
    try {
      handle.release();
    } catch (const Error&) {
      failure = std::current_exception();
      counters_.driver_failures.add();
    }
  }
  Bytes freed;
  std::lock_guard lock(mutex_);
  for (std::size_t i = 0; i < pages.size(); ++i) {
    PhysicalPage& page = physical_[pages[i]];
    if (handles[i]) {  // the release failed: still ours
      page.handle = std::move(handles[i]);
      physical_.move(pages[i], PhysicalState::free);
      continue;
    }
    physical_.move(pages[i], PhysicalState::absent);
    page.holds = {};
    page.exported = false;
    give_back(physical_.page_bytes(pages[i]));
    freed += physical_.page_bytes(pages[i]);
    counters_.pages_released.add();
  }
  in_transit_ -= in_transit;
  changed_.notify_all();
  if (failure && freed.count == 0) std::rethrow_exception(failure);
  return freed;
}

/// Ends the reservation that has been idle longest, to get its addresses back.
bool Pool::free_an_idle_range() {
  Retirements batch;
  {
    std::lock_guard lock(mutex_);
    Reservation* oldest = nullptr;
    for (auto& [id, reservation] : reservations_)
      if (!reservation->leased && epochs_.complete(reservation->idle_fence) &&
          reservation->table.resident().count != 0 &&
          (oldest == nullptr || reservation->idle_since < oldest->idle_since))
        oldest = reservation.get();
    if (oldest == nullptr) return false;
    Unmapping all{oldest, {}};
    for (std::uint32_t i = 0; i < oldest->table.size().count; ++i)
      if (oldest->table[{i}].state == VirtualState::resident) all.pages.push_back({i});
    batch = begin_retiring({std::move(all)});
  }
  return unmap_victims(std::move(batch)).count != 0;
}

/// Where mappings have run out: unmaps what was given up and is over; or ends idle reservations, the longest
/// idle first, until mappings are plentiful again, so that this is not done for each; or unmaps an eighth of
/// what is needed less than `whose`; or waits for work that is ending. False when there was nothing of these.
bool Pool::relieve_mappings(Need whose) {
  constexpr std::uint64_t plenty_fraction = 16;
  if (whose == Need::none) return false;
  const std::uint64_t before = counters_.pages_unmapped.get();
  drain_retired();
  if (counters_.pages_unmapped.get() != before) return true;
  const std::uint64_t plenty = driver_->capabilities().max_mappings / plenty_fraction;
  bool relieved = false;
  do {  // at least one, or whoever asks for more than plenty would ask for ever
    if (!free_an_idle_range()) break;
    relieved = true;
  } while (driver_->mappings_left() < plenty);
  if (relieved) return true;
  if (reclaim(std::max(reclaimable() / 8, 16_MiB), whose).count != 0) return true;
  return whose == Need::kept && await_moment();
}

Bytes Pool::reclaimable() const {
  std::lock_guard lock(mutex_);
  return mapped_.reclaimable();
}

}  // namespace vmm
