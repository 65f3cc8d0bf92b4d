// One contiguous range of virtual addresses and the table of its pages.
#pragma once

#include <cstdint>
#include <ranges>
#include <span>
#include <vector>

#include "memory/arena.h"
#include "memory/fences.h"
#include "memory/page_table.h"
#include "memory/physical_pages.h"
#include "memory/tenants.h"

namespace vmm {

/// What to reserve: `extents` pieces of `extent_bytes`, side by side.
struct ReservationShape {
  Bytes page_bytes;
  Bytes extent_bytes;  // a multiple of page_bytes
  std::uint64_t extents = 1;
  ByteKind kind{0};
  Bytes longest{};      // an adopted reservation may have extents of up to so many bytes; its shape says how
                        // many it has
  bool zeroed = false;  // it reads as zeros where nothing was written, also where no page is mapped if the
                        // driver can do that; such a reservation is never adopted
  TenantId tenant = Tenants::nobody;
};

/// Its pool owns it, and the pool's lock guards all of it but the constants.
struct Reservation {
  Reservation(ReservationId id_, AddressRange addresses_, const ReservationShape& shape_, Tenant& tenant_,
              Pages pages_per_window_, MappedBytes& sums, Sharing& sharing)
      : id(id_),
        tenant(tenant_),
        addresses(std::move(addresses_)),
        shape(shape_),
        pages_per_window(pages_per_window_),
        table({shape_.extent_bytes * shape_.extents / shape_.page_bytes}, shape_.page_bytes, sums,
              tenant_.mapped, sharing),
        window_runs((table.size().count + pages_per_window_.count - 1) / pages_per_window_.count) {}

  const ReservationId id;
  Tenant& tenant;  // that all of it belongs to
  const AddressRange addresses;
  const ReservationShape shape;
  const Pages pages_per_window;

  PageTable table;
  std::vector<RunId> window_runs;  // the run behind each window; none while nothing is mapped there
  bool leased = true;
  bool exported = false;            // another process may have a page of it, so nobody else adopts it
  std::uint64_t idle_since = 0;     // when it became idle, by the pool's count: the smallest is the oldest
  Fence idle_fence;                 // waits for the work that may still touch it
  std::vector<std::uint64_t> uses;  // of each extent, when it was last used, by the pool's count; none where
                                    // nobody has said so

  /// Throws InvalidArgument unless all these pages are in it.
  void check(std::span<const PageRange> ranges) const;
  Address address_of(PageIndex page) const { return addresses.base() + shape.page_bytes * page.value; }
  std::uint64_t window_of(PageIndex page) const { return page.value / pages_per_window.count; }
  Pages pages_per_extent() const { return {shape.extent_bytes / shape.page_bytes}; }
  /// When the page was last used; 0: nobody has said so.
  std::uint64_t use_of(PageIndex page) const {
    return uses.empty() ? 0 : uses[page.value / pages_per_extent().count];
  }
  std::uint64_t position_of(PageIndex page) const { return page.value % pages_per_window.count; }
};

/// Throws InvalidArgument unless pages may have this size.
void check_page_size(const Capabilities& driver, Bytes page_bytes);

/// The pages of the ranges, one after the other.
inline auto each_page(std::span<const PageRange> ranges) {
  return ranges | std::views::transform([](const PageRange& range) {
           return std::views::iota(std::uint64_t{range.first.value}, range.first.value + range.count.count) |
                  std::views::transform(
                      [](std::uint64_t page) { return PageIndex{static_cast<std::uint32_t>(page)}; });
         }) |
         std::views::join;
}

}  // namespace vmm
