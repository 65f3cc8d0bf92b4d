#include "driver/fault_driver.h"

#include "base/error.h"

namespace vmm {

void FaultDriver::fail_at(std::int64_t n, std::int64_t times, Fault fault) {
  std::lock_guard lock(mutex_);
  calls_ = 0;
  first_ = n;
  times_ = times;
  fault_ = fault;
  last_failed_.clear();
}

std::string FaultDriver::last_failed() const {
  std::lock_guard lock(mutex_);
  return last_failed_;
}

void FaultDriver::hold_events(bool hold) {
  std::lock_guard lock(mutex_);
  delay_ = hold ? ~std::uint64_t{0} : 0;  // so many queries never come
  if (!hold) delayed_.clear();
}

void FaultDriver::delay_events(std::uint64_t queries) {
  std::lock_guard lock(mutex_);
  delay_ = queries;
}

bool FaultDriver::due() {
  std::lock_guard lock(mutex_);
  const std::int64_t call = ++calls_;
  return call >= first_ && call < first_ + times_;
}

void FaultDriver::maybe_fail(const char* call) {
  if (due()) fail(call);
}

void FaultDriver::fail(const char* call) {
  std::lock_guard lock(mutex_);
  last_failed_ = std::string(call) + " #" + std::to_string(calls_.load());
  const std::string text = std::string("injected failure of ") + last_failed_;
  if (fault_ == Fault::out_of_memory) throw DriverOutOfMemory(text);
  if (fault_ == Fault::mapping_limit) throw MappingLimit(text);
  throw DriverError(text);
}

Address FaultDriver::reserve(Bytes size, Bytes alignment) {
  maybe_fail("reserve");
  return inner().reserve(size, alignment);
}

void FaultDriver::free_reservation(Address base, Bytes size) {
  maybe_fail("free_reservation");
  inner().free_reservation(base, size);
}

void FaultDriver::set_gap(Address start, Bytes size, Gap gap) {
  maybe_fail("set_gap");
  DriverDecorator::set_gap(start, size, gap);
}

PageHandle FaultDriver::create(Bytes page_bytes, Place place) {
  maybe_fail("create");
  return inner().create(page_bytes, place);
}

void FaultDriver::release(PageHandle page) {
  maybe_fail("release");
  inner().release(page);
}

void FaultDriver::map(std::span<const PageMapping> pages) {
  maybe_fail("map");
  inner().map(pages);
}

void FaultDriver::set_access(std::span<const PageMapping> pages) {
  maybe_fail("set_access");
  inner().set_access(pages);
}

void FaultDriver::unmap(std::span<const PageMapping> pages, std::size_t& done) {
  done = 0;
  if (due()) {
    inner().unmap(pages.first(pages.size() / 2), done);
    fail("unmap");
  }
  inner().unmap(pages, done);
}

void FaultDriver::copy(Address to, Address from, Bytes size, StreamHandle stream) {
  maybe_fail("copy");
  inner().copy(to, from, size, stream);
}

void FaultDriver::zero(std::span<const MemoryRange> ranges, StreamHandle stream) {
  maybe_fail("zero");
  inner().zero(ranges, stream);
}

EventHandle FaultDriver::record(StreamHandle stream) {
  maybe_fail("record");
  const EventHandle event = inner().record(stream);
  std::lock_guard lock(mutex_);
  if (delay_ != 0) delayed_[event.value] = delay_;
  return event;
}

bool FaultDriver::query(EventHandle event) {
  maybe_fail("query");
  {
    std::lock_guard lock(mutex_);
    const auto delayed = delayed_.find(event.value);
    if (delayed != delayed_.end() && delayed->second-- != 0) return false;
    if (delayed != delayed_.end()) delayed_.erase(delayed);
  }
  return inner().query(event);
}

std::byte* FaultDriver::allocate_host(Bytes size) {
  maybe_fail("allocate_host");
  return DriverDecorator::allocate_host(size);
}

void FaultDriver::release_host(std::byte* memory) {
  maybe_fail("release_host");
  DriverDecorator::release_host(memory);
}

void FaultDriver::copy_out(std::byte* to, Address from, Bytes size, StreamHandle stream) {
  maybe_fail("copy_out");
  DriverDecorator::copy_out(to, from, size, stream);
}

void FaultDriver::copy_in(Address to, const std::byte* from, Bytes size, StreamHandle stream) {
  maybe_fail("copy_in");
  DriverDecorator::copy_in(to, from, size, stream);
}

void FaultDriver::finish(StreamHandle stream) {
  maybe_fail("finish");
  DriverDecorator::finish(stream);
}

}  // namespace vmm
