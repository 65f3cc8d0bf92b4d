// What a driver knows of its reservations, pages and mappings: enough to refuse every broken rule of the
// contract in the same words everywhere, which Linux would silently accept and CUDA answer with a number.
#pragma once

#include <cstdint>
#include <map>
#include <span>

#include "driver/driver.h"

namespace vmm {

/// Not thread-safe: its driver holds a lock around every call.
class Ledger {
 public:
  explicit Ledger(Bytes granularity) : granularity_(granularity) {}

  void check_size(const char* argument, Bytes size) const;

  void add_reservation(Address base, Bytes size) { reservations_[base.value] = size; }
  /// Throws unless exactly (base, size) was reserved and nothing is mapped in it.
  void check_free(Address base, Bytes size) const;
  void remove_reservation(Address base) { reservations_.erase(base.value); }

  /// Throws unless the range is inside one reservation and nothing is mapped in it.
  void check_gap(Address start, Bytes size) const;

  void check_page_size(Bytes page_bytes) const;
  /// For drivers whose pages have places, which are then their handles.
  void check_place(Place place, Bytes page_bytes) const;
  void add_page(PageHandle page, Bytes page_bytes) { pages_[page.value] = {page_bytes}; }
  /// Throws unless the page exists and is mapped nowhere; answers its size.
  Bytes check_release(PageHandle page) const;
  void remove_page(PageHandle page) { pages_.erase(page.value); }

  /// All or nothing: throws without a change unless every entry may be mapped.
  void add_mappings(std::span<const PageMapping> pages);
  /// Throws unless every entry is mapped exactly so.
  void check_mapped(std::span<const PageMapping> pages) const;
  /// … and no address is named twice.
  void check_unmap(std::span<const PageMapping> pages) const;
  void set_accessible(std::span<const PageMapping> pages, bool accessible);
  /// What is mapped at the address. Throws where nothing is.
  PageMapping page_at(const char* argument, Address address) const;
  void check_accessible(const char* argument, Address address, Bytes size) const;
  void remove_mappings(std::span<const PageMapping> pages);

  /// From `start` to the range's end, both included: places where what is mapped on one side does not go on,
  /// by address and place, on the other. Of so many mappings the system makes one more.
  std::uint64_t borders(Address start, Bytes size) const;

 private:
  struct Page {
    Bytes size;
    std::uint64_t mappings = 0;
  };
  struct Mapping {
    PageHandle page;
    Bytes size;
    bool accessible = false;
  };

  void check_inside(Address start, Bytes size) const;
  void check_target(const PageMapping& entry) const;

  Bytes granularity_;
  std::map<std::uintptr_t, Bytes> reservations_;
  std::map<std::uint64_t, Page> pages_;  // in order, so that overlapping places are found
  std::map<std::uintptr_t, Mapping> mappings_;
};

}  // namespace vmm
