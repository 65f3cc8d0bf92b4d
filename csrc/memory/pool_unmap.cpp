// What reclaiming does: unmaps pages, and gives free ones back to the driver.
#include <algorithm>
#include <exception>

#include "base/error.h"
#include "memory/pool.h"

namespace vmm {

Bytes Pool::size(const std::vector<Unmapping>& batch) {
  Bytes sum;
  for (const Unmapping& what : batch) sum += what.reservation->shape.page_bytes * what.pages.size();
  return sum;
}

/// Unmaps Retiring pages, which the caller has counted as in transit. Those the driver refuses are retired
/// again. Throws only when none was unmapped.
Bytes Pool::unmap(std::vector<Unmapping> batch) {
  if (batch.empty()) return {};
  const Bytes in_transit = size(batch);
  std::vector<std::vector<PageMapping>> mappings;
  {
    std::lock_guard lock(mutex_);
    for (const Unmapping& what : batch) mappings.push_back(begin_unmap(what));
  }
  std::vector<std::size_t> done(batch.size(), 0);
  std::exception_ptr failure;
  for (std::size_t i = 0; i < batch.size(); ++i) {
    try {
      driver_->unmap(mappings[i], done[i]);
    } catch (const Error& error) {
      failure = std::current_exception();
      counters_.driver_failures.add();
      log_.write(LogLevel::warning, std::string("unmap, to be tried again: ") + error.what());
    }
  }
  Bytes freed;
  Releasing exported;
  {
    std::lock_guard lock(mutex_);
    std::vector<PhysicalPageId> pages;
    for (std::size_t i = 0; i < batch.size(); ++i) {
      freed += batch[i].reservation->shape.page_bytes * done[i];
      end_unmap(batch[i], done[i], pages);
    }
    in_transit_ -= in_transit;
    exported = begin_release(std::move(pages));
    changed_.notify_all();
  }
  release_exported(std::move(exported));
  if (failure && freed.count == 0) std::rethrow_exception(failure);
  return freed;
}

/// As unmap(), of pages that were not retired before: nobody would look after what the driver refuses.
Bytes Pool::unmap_victims(std::vector<Unmapping> victims) {
  const Bytes all = size(victims);
  try {
    const Bytes freed = unmap(std::move(victims));
    if (freed < all) wake_pager();
    return freed;
  } catch (const Error&) {
    wake_pager();
    throw;
  }
}

std::vector<PageMapping> Pool::begin_unmap(const Unmapping& what) {
  std::vector<PageMapping> out;
  out.reserve(what.pages.size());
  for (PageIndex page : what.pages) {
    const PhysicalPageId id = contents_[what.reservation->table[page].content].page;
    physical_.move(id, PhysicalState::busy);
    out.push_back({what.reservation->address_of(page), physical_[id].handle.get(), physical_.page_bytes(id)});
  }
  return out;
}

void Pool::end_unmap(Unmapping& what, std::size_t done, std::vector<PhysicalPageId>& exported) {
  Reservation& reservation = *what.reservation;
  for (std::size_t i = 0; i < what.pages.size(); ++i) {
    const PageIndex page = what.pages[i];
    const ContentId content = reservation.table[page].content;
    const PhysicalPageId id = contents_[content].page;
    if (i >= done) {
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
  what.pages.erase(what.pages.begin(), what.pages.begin() + static_cast<std::ptrdiff_t>(done));
  if (!what.pages.empty())
    retired_.push_back({std::move(what), {}, false});
  else
    erase_if_empty(reservation);
}

Bytes Pool::release_free(Bytes wanted, bool strays_only) {
  Releasing what;
  {
    std::lock_guard lock(mutex_);
    what = begin_release(physical_.some_free(wanted, strays_only));
  }
  return release(std::move(what));
}

/// Takes free pages away from everybody.
Pool::Releasing Pool::begin_release(std::vector<PhysicalPageId> pages) {
  Releasing what{std::move(pages), {}, {}};
  for (PhysicalPageId page : what.pages) what.size += physical_.page_bytes(page);
  in_transit_ += what.size;
  what.handles.reserve(what.pages.size());
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
    page.last_tenant = {};
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
  std::vector<Unmapping> batch;
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
    for (PageIndex page : all.pages) oldest->table.move(page, VirtualState::retiring);
    batch.push_back(std::move(all));
    in_transit_ += size(batch);
  }
  return unmap_victims(std::move(batch)).count != 0;
}

}  // namespace vmm
