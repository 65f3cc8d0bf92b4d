#include "driver/ledger.h"

#include <algorithm>
#include <cstdio>
#include <set>
#include <string>

#include "base/error.h"

namespace vmm {
namespace {

std::string hex(std::uint64_t value) {
  char text[2 + 16 + 1];
  std::snprintf(text, sizeof text, "0x%llx", static_cast<unsigned long long>(value));
  return text;
}

std::string bytes(Bytes size) { return std::to_string(size.count) + " bytes"; }

/// Returns the entry at `key`, or else the one before it; end() where there is none.
template <class Map>
auto at_or_before(const Map& map, typename Map::key_type key) {
  auto next = map.upper_bound(key);
  return next == map.begin() ? map.end() : std::prev(next);
}

}  // namespace

void Ledger::check_size(const char* argument, Bytes size) const {
  if (size.count == 0 || (size % granularity_).count != 0)
    throw InvalidArgument(std::string(argument) + " is " + bytes(size) +
                          "; expected a positive multiple of " + bytes(granularity_));
}

void Ledger::check_reservation(Bytes size, Bytes alignment) const {
  check_size("size", size);
  check_size("alignment", alignment);
  if (!is_power_of_two(alignment.count)) throw InvalidArgument("alignment: expected a power of two");
}

void Ledger::add_reservation(Address base, Bytes size) {
  std::lock_guard lock(mutex_);
  reservations_[base.value] = size;
}

void Ledger::put_back(Reservations::node_type reservation) {
  std::lock_guard lock(mutex_);
  reservations_.insert(std::move(reservation));
}

Ledger::Reservations::node_type Ledger::take_reservation(Address base, Bytes size) {
  std::lock_guard lock(mutex_);
  auto found = reservations_.find(base.value);
  if (found == reservations_.end() || found->second != size)
    throw InvalidArgument("base, size: " + hex(base.value) + ", " + bytes(size) +
                          " is not one whole reservation");
  auto mapped = mappings_.lower_bound(base.value);
  if (mapped != mappings_.end() && mapped->first < base.value + size.count)
    throw InvalidArgument("base: the reservation at " + hex(base.value) + " still has a page mapped at " +
                          hex(mapped->first));
  return reservations_.extract(found);
}

void Ledger::check_page_size(Bytes page_bytes) const {
  check_size("page_bytes", page_bytes);
  if (!is_power_of_two(page_bytes.count))
    throw InvalidArgument("page_bytes is " + bytes(page_bytes) + "; expected a power of two");
}

void Ledger::add_page(PageHandle page, Bytes page_bytes) {
  std::lock_guard lock(mutex_);
  pages_[page.value] = {page_bytes};
}

void Ledger::put_back(PagesByHandle::node_type page) {
  std::lock_guard lock(mutex_);
  pages_.insert(std::move(page));
}

void Ledger::add_page_at(Place place, Bytes page_bytes) {
  if (place.offset_bytes % page_bytes.count != 0)
    throw InvalidArgument("place is " + hex(place.offset_bytes) + "; expected a multiple of page_bytes");
  std::lock_guard lock(mutex_);
  auto before = at_or_before(pages_, place.offset_bytes + page_bytes.count - 1);
  if (before != pages_.end() && before->first + before->second.size.count > place.offset_bytes)
    throw InvalidArgument("place " + hex(place.offset_bytes) + " is taken by another page");
  pages_[place.offset_bytes] = {page_bytes};
}

Ledger::PagesByHandle::node_type Ledger::take_page(PageHandle page) {
  std::lock_guard lock(mutex_);
  auto found = pages_.find(page.value);
  if (found == pages_.end()) throw InvalidArgument("page: no such page " + hex(page.value));
  if (found->second.mappings != 0)
    throw InvalidArgument("page " + hex(page.value) + " is still mapped; unmap it first");
  return pages_.extract(found);
}

void Ledger::check_inside(Address start, Bytes size) const {
  auto range = at_or_before(reservations_, start.value);
  const std::uint64_t offset = range == reservations_.end() ? 0 : start.value - range->first;
  // We do not compare start + size, which overflows near the end of all addresses.
  if (range == reservations_.end() || offset > range->second.count ||
      size.count > range->second.count - offset)
    throw InvalidArgument("address " + hex(start.value) + " is not inside a reservation");
}

/// Returns the first mapping that has a byte in the range, or end(). `next` is the first mapping that starts
/// in the range or after it.
Ledger::Mappings::const_iterator Ledger::find_overlap(Mappings::const_iterator next, Address start,
                                                      Bytes size) const {
  if (next != mappings_.begin()) {
    const auto before = std::prev(next);
    if (before->first + before->second.size.count > start.value) return before;
  }
  return next != mappings_.end() && next->first < start.value + size.count ? next : mappings_.end();
}

void Ledger::check_gap(Address start, Bytes size) const {
  check_size("size", size);
  std::lock_guard lock(mutex_);
  check_inside(start, size);
  const auto mapped = find_overlap(mappings_.lower_bound(start.value), start, size);
  if (mapped != mappings_.end()) throw InvalidArgument("start: a page is mapped at " + hex(mapped->first));
}

/// Throws unless the entry may be mapped. Returns the mapping after it.
Ledger::Mappings::const_iterator Ledger::check_target(const PageMapping& entry,
                                                      PagesByHandle::const_iterator page) const {
  if (page == pages_.end()) throw InvalidArgument("page: no such page " + hex(entry.page.value));
  if (page->second.size != entry.page_bytes)
    throw InvalidArgument("page_bytes is " + bytes(entry.page_bytes) + "; a page is mapped whole, " +
                          bytes(page->second.size));
  if (entry.address.value % entry.page_bytes.count != 0)
    throw InvalidArgument("address " + hex(entry.address.value) + " is not a multiple of the page size, " +
                          bytes(entry.page_bytes));
  check_inside(entry.address, entry.page_bytes);
  const auto next = mappings_.lower_bound(entry.address.value);
  if (find_overlap(next, entry.address, entry.page_bytes) != mappings_.end())
    throw InvalidArgument("address " + hex(entry.address.value) + " has a page mapped already");
  return next;
}

void Ledger::add_mappings(std::span<const PageMapping> pages) {
  std::lock_guard lock(mutex_);
  std::size_t added = 0;
  try {
    for (const PageMapping& entry : pages) {
      const auto page = pages_.find(entry.page.value);
      const auto next = check_target(entry, page);
      mappings_.emplace_hint(next, entry.address.value, Mapping{entry.page, &page->second, entry.page_bytes});
      ++page->second.mappings;
      ++added;
    }
  } catch (...) {
    remove(pages.first(added));
    throw;
  }
}

void Ledger::check_mapped(std::span<const PageMapping> pages) const {
  std::lock_guard lock(mutex_);
  for (const PageMapping& entry : pages) {
    auto found = mappings_.find(entry.address.value);
    if (found == mappings_.end())
      throw InvalidArgument("address " + hex(entry.address.value) + " has no mapping that starts there");
    if (found->second.handle != entry.page || found->second.size != entry.page_bytes)
      throw InvalidArgument("address " + hex(entry.address.value) + " maps another page than " +
                            hex(entry.page.value) + " of " + bytes(entry.page_bytes));
  }
}

void Ledger::check_unmap(std::span<const PageMapping> pages) const {
  check_mapped(pages);
  const auto not_ascending = [](const PageMapping& a, const PageMapping& b) {
    return a.address >= b.address;
  };
  if (std::adjacent_find(pages.begin(), pages.end(), not_ascending) == pages.end()) return;
  std::set<Address> seen;
  for (const PageMapping& entry : pages)
    if (!seen.insert(entry.address).second)
      throw InvalidArgument("address " + hex(entry.address.value) + " is to be unmapped twice");
}

void Ledger::set_accessible(std::span<const PageMapping> pages) {
  std::lock_guard lock(mutex_);
  for (const PageMapping& entry : pages) mappings_.at(entry.address.value).accessible = true;
}

void Ledger::check_accessible(const char* argument, Address address, Bytes size) const {
  std::uintptr_t at = address.value;
  const std::uintptr_t end = at + size.count;
  if (end < at) throw InvalidArgument(std::string(argument) + ": beyond the end of all addresses");
  std::lock_guard lock(mutex_);
  while (at < end) {
    auto found = at_or_before(mappings_, at);
    if (found == mappings_.end() || !found->second.accessible ||
        found->first + found->second.size.count <= at)
      throw InvalidArgument(std::string(argument) + ": " + hex(at) + " is not mapped and accessible");
    at = found->first + found->second.size.count;
  }
}

void Ledger::remove_mappings(std::span<const PageMapping> pages) noexcept {
  std::lock_guard lock(mutex_);
  remove(pages);
}

void Ledger::remove(std::span<const PageMapping> pages) noexcept {
  for (const PageMapping& entry : pages) {
    const auto found = mappings_.find(entry.address.value);
    --found->second.page->mappings;
    mappings_.erase(found);
  }
}

void Ledger::add_host_memory(const std::byte* memory, Bytes size) {
  std::lock_guard lock(mutex_);
  host_memory_[reinterpret_cast<std::uintptr_t>(memory)] = size;
}

Ledger::HostMemory::node_type Ledger::take_host_memory(const std::byte* memory) {
  std::lock_guard lock(mutex_);
  const auto found = host_memory_.find(reinterpret_cast<std::uintptr_t>(memory));
  if (found == host_memory_.end()) throw InvalidArgument("memory: was not allocated here");
  return host_memory_.extract(found);
}

void Ledger::put_back_host_memory(HostMemory::node_type memory) {
  std::lock_guard lock(mutex_);
  host_memory_.insert(std::move(memory));
}

void Ledger::check_host_memory(const char* argument, const std::byte* memory, Bytes size) const {
  const auto start = reinterpret_cast<std::uintptr_t>(memory);
  std::lock_guard lock(mutex_);
  const auto found = at_or_before(host_memory_, start);
  const std::uint64_t offset = found == host_memory_.end() ? 0 : start - found->first;
  if (found == host_memory_.end() || offset > found->second.count ||
      size.count > found->second.count - offset)
    throw InvalidArgument(std::string(argument) + ": " + hex(start) + " is not host memory of this driver");
}

}  // namespace vmm
