#include "memory/reservation.h"

#include <string>

#include "base/error.h"

namespace vmm {

void Reservation::check(std::span<const PageRange> ranges) const {
  const std::uint64_t pages = table.size().count;
  for (const PageRange& range : ranges)
    if (range.count.count > pages || range.first.value > pages - range.count.count)
      throw InvalidArgument("ranges: pages " + std::to_string(range.first.value) + " + " +
                            std::to_string(range.count.count) + " are not all in this reservation of " +
                            std::to_string(pages));
}

void check_page_size(const Capabilities& driver, Bytes page_bytes) {
  if (is_power_of_two(page_bytes.count) && page_bytes >= driver.granularity) return;
  throw InvalidArgument("page_bytes is " + std::to_string(page_bytes.count) +
                        "; expected a power of two of at least " + std::to_string(driver.granularity.count) +
                        ", the granularity of the " + driver.name + " driver");
}

}  // namespace vmm
