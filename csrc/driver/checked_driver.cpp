#include "driver/checked_driver.h"

#include <utility>

namespace vmm {

CheckedDriver::CheckedDriver(std::shared_ptr<Driver> inner)
    : DriverDecorator(std::move(inner)), ledger_(capabilities().granularity) {}

Address CheckedDriver::reserve(Bytes size, Bytes alignment) {
  ledger_.check_reservation(size, alignment);
  const Address base = inner().reserve(size, alignment);
  ledger_.add_reservation(base, size);
  return base;
}

void CheckedDriver::free_reservation(Address base, Bytes size) {
  // This comes before the call: once the addresses are free, the platform may give them to another thread.
  auto taken = ledger_.take_reservation(base, size);
  try {
    inner().free_reservation(base, size);
  } catch (...) {
    ledger_.put_back(std::move(taken));
    throw;
  }
}

void CheckedDriver::set_gap(Address start, Bytes size, Gap gap) {
  ledger_.check_gap(start, size);
  DriverDecorator::set_gap(start, size, gap);
}

PageHandle CheckedDriver::create(Bytes page_bytes, Place place) {
  ledger_.check_page_size(page_bytes);
  if (!capabilities().merges_neighbours) {
    const PageHandle page = inner().create(page_bytes, place);
    ledger_.add_page(page, page_bytes);
    return page;
  }
  // This comes before the call, or two threads could create pages at one place.
  ledger_.add_page_at(place, page_bytes);
  try {
    return inner().create(page_bytes, place);
  } catch (...) {
    ledger_.take_page({place.offset_bytes});
    throw;
  }
}

void CheckedDriver::release(PageHandle page) {
  // This comes before the call: once the page is released, the platform may give its handle to another
  // thread.
  auto taken = ledger_.take_page(page);
  try {
    inner().release(page);
  } catch (...) {
    ledger_.put_back(std::move(taken));
    throw;
  }
}

void CheckedDriver::map(std::span<const PageMapping> pages) {
  ledger_.add_mappings(pages);
  try {
    inner().map(pages);
  } catch (...) {
    ledger_.remove_mappings(pages);
    throw;
  }
}

void CheckedDriver::set_access(std::span<const PageMapping> pages) {
  ledger_.check_mapped(pages);
  inner().set_access(pages);
  ledger_.set_accessible(pages);
}

void CheckedDriver::unmap(std::span<const PageMapping> pages, std::size_t& done) {
  done = 0;
  ledger_.check_unmap(pages);
  try {
    inner().unmap(pages, done);
  } catch (...) {
    ledger_.remove_mappings(pages.first(done));
    throw;
  }
  ledger_.remove_mappings(pages.first(done));
}

void CheckedDriver::copy(Address to, Address from, Bytes size, StreamHandle stream) {
  ledger_.check_accessible("to", to, size);
  ledger_.check_accessible("from", from, size);
  inner().copy(to, from, size, stream);
}

void CheckedDriver::zero(std::span<const MemoryRange> ranges, StreamHandle stream) {
  for (const MemoryRange& range : ranges) ledger_.check_accessible("ranges", range.start, range.size);
  inner().zero(ranges, stream);
}

std::byte* CheckedDriver::allocate_host(Bytes size) {
  std::byte* const memory = DriverDecorator::allocate_host(size);
  ledger_.add_host_memory(memory, size);
  return memory;
}

void CheckedDriver::release_host(std::byte* memory) {
  // This comes before the call: once it is released, another thread may be given the same memory.
  auto taken = ledger_.take_host_memory(memory);
  try {
    DriverDecorator::release_host(memory);
  } catch (...) {
    ledger_.put_back_host_memory(std::move(taken));
    throw;
  }
}

void CheckedDriver::copy_out(std::byte* to, Address from, Bytes size, StreamHandle stream) {
  ledger_.check_host_memory("to", to, size);
  ledger_.check_accessible("from", from, size);
  DriverDecorator::copy_out(to, from, size, stream);
}

void CheckedDriver::copy_in(Address to, const std::byte* from, Bytes size, StreamHandle stream) {
  ledger_.check_accessible("to", to, size);
  ledger_.check_host_memory("from", from, size);
  DriverDecorator::copy_in(to, from, size, stream);
}

}  // namespace vmm
