#include "driver/checked_driver.h"

#include <utility>

namespace vmm {

CheckedDriver::CheckedDriver(std::shared_ptr<Driver> inner)
    : DriverDecorator(std::move(inner)), ledger_(capabilities().granularity) {}

Address CheckedDriver::reserve(Bytes size, Bytes alignment) {
  ledger_.check_reservation(size, alignment);
  const Address base = inner().reserve(size, alignment);
  std::lock_guard lock(mutex_);
  ledger_.add_reservation(base, size);
  return base;
}

void CheckedDriver::free_reservation(Address base, Bytes size) {
  std::unique_lock lock(mutex_);
  // Taken out first: once they are free, the platform may give the same addresses to another thread.
  auto taken = ledger_.take_reservation(base, size);
  lock.unlock();
  try {
    inner().free_reservation(base, size);
  } catch (...) {
    lock.lock();
    ledger_.put_back(std::move(taken));
    throw;
  }
}

void CheckedDriver::set_gap(Address start, Bytes size, Gap gap) {
  {
    std::lock_guard lock(mutex_);
    ledger_.check_gap(start, size);
  }
  DriverDecorator::gaps()->set_gap(start, size, gap);
}

PageHandle CheckedDriver::create(Bytes page_bytes, Place place) {
  ledger_.check_page_size(page_bytes);
  if (!capabilities().merges_neighbours) {
    const PageHandle page = inner().create(page_bytes, place);
    std::lock_guard lock(mutex_);
    ledger_.add_page(page, page_bytes);
    return page;
  }
  // The place is taken before the call, or two threads could create pages there.
  std::unique_lock lock(mutex_);
  ledger_.check_place(place, page_bytes);
  ledger_.add_page({place.offset_bytes}, page_bytes);
  lock.unlock();
  try {
    return inner().create(page_bytes, place);
  } catch (...) {
    lock.lock();
    ledger_.take_page({place.offset_bytes});
    throw;
  }
}

void CheckedDriver::release(PageHandle page) {
  std::unique_lock lock(mutex_);
  // Taken out first: once it is released, the platform may give the same handle to another thread.
  auto taken = ledger_.take_page(page);
  lock.unlock();
  try {
    inner().release(page);
  } catch (...) {
    lock.lock();
    ledger_.put_back(std::move(taken));
    throw;
  }
}

void CheckedDriver::map(std::span<const PageMapping> pages) {
  {
    std::lock_guard lock(mutex_);
    ledger_.add_mappings(pages);
  }
  try {
    inner().map(pages);
  } catch (...) {
    std::lock_guard lock(mutex_);
    ledger_.remove_mappings(pages);
    throw;
  }
}

void CheckedDriver::set_access(std::span<const PageMapping> pages) {
  {
    std::lock_guard lock(mutex_);
    ledger_.check_mapped(pages);
  }
  inner().set_access(pages);
  std::lock_guard lock(mutex_);
  ledger_.set_accessible(pages);
}

void CheckedDriver::unmap(std::span<const PageMapping> pages, std::size_t& done) {
  done = 0;
  {
    std::lock_guard lock(mutex_);
    ledger_.check_unmap(pages);
  }
  /// Also when the call stops half way.
  struct Unmapped {
    CheckedDriver& driver;
    std::span<const PageMapping> pages;
    const std::size_t& done;
    ~Unmapped() {
      std::lock_guard lock(driver.mutex_);
      driver.ledger_.remove_mappings(pages.first(done));
    }
  };
  const Unmapped unmapped{*this, pages, done};
  inner().unmap(pages, done);
}

void CheckedDriver::copy(Address to, Address from, Bytes size, StreamHandle stream) {
  {
    std::lock_guard lock(mutex_);
    ledger_.check_accessible("to", to, size);
    ledger_.check_accessible("from", from, size);
  }
  inner().copy(to, from, size, stream);
}

void CheckedDriver::zero(std::span<const MemoryRange> ranges, StreamHandle stream) {
  {
    std::lock_guard lock(mutex_);
    for (const MemoryRange& range : ranges) ledger_.check_accessible("ranges", range.start, range.size);
  }
  inner().zero(ranges, stream);
}

}  // namespace vmm
