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
  bool any = false;
  {
    const Unlocked outside(lock);
    for (Retirement& entry : batch) {
      news |= !unmap_in_driver(entry, failure) && entry.intact;
      any |= entry.done != 0;
      ground_.counters.pages_unmapped.add(entry.done);
    }
  }
  // 3. What it has unmapped is free; what another process has, or was given up for the system, goes back to
  // the driver at once.
  Unmapped freed = tables_.end_unmapping(batch);
  Releasing leaving = tables_.begin_releasing(std::move(freed.to_release));
  ground_.changed.notify_all();
  if (any) {
    ground_.signals.given_up(true);
    ground_.signals.note_idle();
  }
  lock.unlock();
  try {
    release(std::move(leaving), 2);
  } catch (const Error& error) {
    ground_.log.write(LogLevel::warning, "release of an unmapped page: ", error.what());
  }
  if (news && !any) std::rethrow_exception(failure);
  return freed.size;
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
  const Bytes all = in_transit(victims);
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
  return release(ground_.under_lock([&] {
    std::erase_if(pages,
                  [&](PhysicalPageId page) { return tables_.physical()[page].state != PhysicalState::free; });
    return tables_.begin_releasing(std::move(pages));
  }));
}

Bytes Unmapping::release_free(Bytes wanted) {
  return release(
      ground_.under_lock([&] { return tables_.begin_releasing(tables_.physical().some_free(wanted)); }));
}

/// Tries each page so many times. A page that the driver refuses is free as before.
Bytes Unmapping::release(Releasing what, int attempts) {
  if (what.pages.empty()) return {};
  std::exception_ptr failure;
  for (; attempts > 0; --attempts) {
    for (CreatedPage& handle : what.handles) {
      if (!handle) continue;
      try {
        handle.release();
        ground_.counters.pages_released.add();
      } catch (const Error&) {
        failure = std::current_exception();
        ground_.counters.driver_failures.add();
      }
    }
  }
  std::lock_guard lock(ground_.mutex);
  const Bytes released = tables_.end_releasing(what);
  ground_.changed.notify_all();
  if (failure && released.count == 0) std::rethrow_exception(failure);
  return released;
}

}  // namespace vmm
