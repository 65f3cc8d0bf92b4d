#include "driver/sim_driver.h"

#include <string>
#include <utility>

#include "base/error.h"

namespace vmm {

SimDriver::SimDriver(std::shared_ptr<SimClock> clock, const SimOptions& options)
    : clock_(std::move(clock)),
      options_(options),
      capabilities_{.name = "simulation",
                    .granularity = options.granularity,
                    .default_page_bytes = options.granularity,
                    .fresh_pages_are_zero = true,
                    .gpu = true},
      faults_(options.faults) {
  if (!is_power_of_two(options.granularity.count))
    throw InvalidArgument("granularity: expected a power of two");
  const CallTimes& times = options.times;
  for (const Nanoseconds time :
       {times.reserve, times.create, times.map, times.set_access, times.unmap, times.release, times.event})
    if (time.count() < 0) throw InvalidArgument("times: expected none below 0");
  streams_[0];
}

Address SimDriver::reserve(Bytes size, Bytes alignment) {
  std::lock_guard lock(mutex_);
  take(options_.times.reserve);
  maybe_fail("reserve");
  const Address base{round_up(Bytes{next_address_}, alignment).count};
  if (Bytes{base.value} + size < size || (base + size).value >= std::uintptr_t{1} << 47)
    throw DriverOutOfMemory("reserve: no addresses left");
  next_address_ = (base + size + options_.granularity).value;  // no two reservations touch
  return base;
}

PageHandle SimDriver::create(Bytes page_bytes, Place) {
  std::lock_guard lock(mutex_);
  take(options_.times.create * static_cast<Nanoseconds::rep>(page_bytes / options_.granularity));
  if (faults_.fails()) throw DriverOutOfMemory("create: injected");
  if (options_.capacity.count != 0 && created_ + page_bytes > options_.capacity)
    throw DriverOutOfMemory("create: the simulated device has " + std::to_string(options_.capacity.count) +
                            " bytes");
  const PageHandle page{next_handle_++};
  page_sizes_[page] = page_bytes;
  created_ += page_bytes;
  return page;
}

void SimDriver::release(PageHandle page) {
  std::lock_guard lock(mutex_);
  take(options_.times.release);
  created_ -= page_sizes_.extract(page).mapped();
  contents_.erase(page);
}

void SimDriver::map(std::span<const PageMapping> pages) {
  std::lock_guard lock(mutex_);
  take(options_.times.map * static_cast<Nanoseconds::rep>(pages.size()));
  maybe_fail("map");
  for (const PageMapping& page : pages)
    mapped_[page.address.value] = {.page = page.page, .size = page.page_bytes};
}

void SimDriver::set_access(std::span<const PageMapping> pages) {
  std::lock_guard lock(mutex_);
  take(options_.times.set_access * static_cast<Nanoseconds::rep>(pages.size()));
  maybe_fail("set_access");
  for (const PageMapping& page : pages) {
    Mapped& mapped = mapped_.at(page.address.value);
    if (!std::exchange(mapped.accessible, true)) mapped.ready_at = clock_->now();
  }
}

void SimDriver::unmap(std::span<const PageMapping> pages, std::size_t& done) {
  done = 0;
  std::lock_guard lock(mutex_);
  refuse_in_use(pages);
  take(options_.times.unmap * static_cast<Nanoseconds::rep>(pages.size()));
  const bool fails = faults_.fails();
  const auto unmapped = pages.first(fails ? pages.size() / 2 : pages.size());
  for (const PageMapping& page : unmapped) mapped_.erase(page.address.value);
  done = unmapped.size();
  if (fails) throw DriverError("unmap: injected");
}

Bytes SimDriver::created() const {
  std::lock_guard lock(mutex_);
  return created_;
}

void SimDriver::maybe_fail(const char* call) {
  if (faults_.fails()) throw DriverError(std::string(call) + ": injected");
}

void SimDriver::wait_until(Nanoseconds then) {
  if (then > clock_->now()) clock_->advance(then - clock_->now());
}

}  // namespace vmm
