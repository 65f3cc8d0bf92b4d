// What has been reserved, created and mapped: enough to find every broken rule of the driver contract, and to
// say so in the same words for every driver.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <span>
#include <utility>

#include "base/lock.h"
#include "driver/driver.h"

namespace vmm {

/// Every check throws InvalidArgument, which names the argument, and changes nothing. Safe from any thread.
class Ledger {
  struct Page {
    Bytes size;
    std::uint64_t mappings = 0;
  };
  struct Mapping {
    PageHandle handle;
    Page* page;
    Bytes size;
    bool accessible = false;
  };
  using Reservations = std::map<std::uintptr_t, Bytes>;
  using PagesByHandle = std::map<std::uint64_t, Page>;  // in order, so that overlapping places are found
  using Mappings = std::map<std::uintptr_t, Mapping>;
  using HostMemory = std::map<std::uintptr_t, Bytes>;

 public:
  explicit Ledger(Bytes granularity) : granularity_(granularity) {}

  void check_reservation(Bytes size, Bytes alignment) const;
  void add_reservation(Address base, Bytes size);
  /// Throws unless exactly (base, size) was reserved and nothing is mapped in it.
  Reservations::node_type take_reservation(Address base, Bytes size);
  void put_back(Reservations::node_type reservation);

  /// Throws unless the range is inside one reservation and nothing is mapped in it.
  void check_gap(Address start, Bytes size) const;

  void check_page_size(Bytes page_bytes) const;
  void add_page(PageHandle page, Bytes page_bytes);
  /// Adds a page of a driver whose pages have places, which are then their handles. Throws without a change
  /// unless the place is free.
  void add_page_at(Place place, Bytes page_bytes);
  /// Throws unless the page exists and is mapped nowhere.
  PagesByHandle::node_type take_page(PageHandle page);
  void put_back(PagesByHandle::node_type page);

  /// All or nothing: throws without a change unless every entry may be mapped.
  void add_mappings(std::span<const PageMapping> pages);
  /// Throws unless every entry is mapped exactly so.
  void check_mapped(std::span<const PageMapping> pages) const;
  /// The same, and no address may be named twice.
  void check_unmap(std::span<const PageMapping> pages) const;
  void set_accessible(std::span<const PageMapping> pages);
  void check_accessible(const char* argument, Address address, Bytes size) const;
  void remove_mappings(std::span<const PageMapping> pages) noexcept;

  void add_host_memory(const std::byte* memory, Bytes size);
  HostMemory::node_type take_host_memory(const std::byte* memory);
  void put_back_host_memory(HostMemory::node_type memory);
  /// Throws unless all of it is in one piece of what was allocated.
  void check_host_memory(const char* argument, const std::byte* memory, Bytes size) const;

 private:
  void check_size(const char* argument, Bytes size) const;
  void check_inside(Address start, Bytes size) const;
  void remove(std::span<const PageMapping> pages) noexcept;
  Mappings::const_iterator find_overlap(Mappings::const_iterator next, Address start, Bytes size) const;
  Mappings::const_iterator check_target(const PageMapping& entry, PagesByHandle::const_iterator page) const;

  const Bytes granularity_;
  mutable Mutex mutex_{LockRank::checked_driver};  // guards what follows
  Reservations reservations_;
  PagesByHandle pages_;
  Mappings mappings_;
  HostMemory host_memory_;
};

}  // namespace vmm
