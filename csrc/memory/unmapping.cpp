#include "memory/unmapping.h"

#include "base/error.h"
#include "memory/waiting.h"

namespace vmm {

Bytes Unmapping::unmap(Retirements batch) {
  if (batch.empty()) return {};
  // 1. Nobody else touches the pages.
  std::unique_lock lock(ground_.mutex);
  for (Retirement& entry : batch) tables_.begin_unmapping(entry);
  // 2. The driver unmaps them.
  std::exception_ptr failure;
  bool news = false;
  Bytes freed;
  {
    const Unlocked outside(lock);
    for (Retirement& entry : batch) {
      news |= !unmap_in_driver(entry, failure) && entry.intact;
      freed += entry.reservation->shape.page_bytes * entry.done;
      ground_.counters.pages_unmapped.add(entry.done);
    }
  }
  // 3. What it has unmapped is free; what another process has goes back to the driver at once.
  Releasing exported = tables_.begin_releasing(tables_.end_unmapping(batch));
  ground_.changed.notify_all();
  if (freed.count != 0) {
    ground_.signals.given_up(true);
    ground_.signals.note_idle();
  }
  lock.unlock();
  release_exported(std::move(exported));
  if (news && freed.count == 0) std::rethrow_exception(failure);
  return freed;
}

bool Unmapping::unmap_in_driver(Retirement& entry, std::exception_ptr& failure) noexcept {
  try {
    ground_.driver->unmap(entry.mappings, entry.done);
    return true;
  } catch (const std::exception& error) {
    failure = std::current_exception();
    ground_.counters.driver_failures.add();
    if (entry.intact) ground_.log.write(LogLevel::warning, "unmap, to be tried again: ", error.what());
    return false;
  }
}

Bytes Unmapping::unmap_victims(Retirements victims) {
  const Bytes all = size(victims);
  try {
    const Bytes freed = unmap(std::move(victims));
    if (freed < all) ground_.signals.wake();
    return freed;
  } catch (const std::exception&) {
    ground_.signals.wake();
    throw;
  }
}

Bytes Unmapping::release(std::vector<PhysicalPageId> pages) {
  Releasing what;
  {
    std::lock_guard lock(ground_.mutex);
    std::erase_if(pages,
                  [&](PhysicalPageId page) { return tables_.physical()[page].state != PhysicalState::free; });
    what = tables_.begin_releasing(std::move(pages));
  }
  return release(std::move(what));
}

Bytes Unmapping::release_free(Bytes wanted) {
  Releasing what;
  {
    std::lock_guard lock(ground_.mutex);
    what = tables_.begin_releasing(tables_.physical().some_free(wanted));
  }
  return release(std::move(what));
}

Bytes Unmapping::release(Releasing what) {
  if (what.pages.empty()) return {};
  std::exception_ptr failure;
  for (CreatedPage& handle : what.handles) {
    try {
      handle.release();
      ground_.counters.pages_released.add();
    } catch (const Error&) {
      failure = std::current_exception();
      ground_.counters.driver_failures.add();
    }
  }
  std::lock_guard lock(ground_.mutex);
  const Bytes released = tables_.end_releasing(what);
  ground_.changed.notify_all();
  if (failure && released.count == 0) std::rethrow_exception(failure);
  return released;
}

/// Once more what the driver refuses; what it refuses again is a free page like any other, until it goes.
void Unmapping::release_exported(Releasing what) noexcept {
  const std::vector<PhysicalPageId> pages = what.pages;
  for (int attempt = 0; attempt < 2 && !what.pages.empty(); ++attempt) {
    try {
      release(std::move(what));
    } catch (const Error& error) {
      ground_.log.write(LogLevel::warning, "release of an exported page: ", error.what());
    }
    std::vector<PhysicalPageId> left;
    std::lock_guard lock(ground_.mutex);
    for (PhysicalPageId page : pages) {
      const PhysicalPage& entry = tables_.physical()[page];
      if (entry.exported && entry.state == PhysicalState::free) left.push_back(page);
    }
    what = attempt == 0 ? tables_.begin_releasing(std::move(left)) : Releasing{};
  }
}

}  // namespace vmm
