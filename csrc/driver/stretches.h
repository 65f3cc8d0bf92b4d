// A batch of mappings is cut into pieces that the platform can do with one call each.
#pragma once

#include <span>

#include "driver/driver.h"

namespace vmm {

/// Some entries of a batch, one after the other, whose addresses [address, address + size) have no hole.
struct Stretch {
  Address address;
  std::uint64_t offset_bytes;
  Bytes size;
  std::size_t entries;
};

/// Calls visit(stretch) for each stretch, in order. With `offsets_matter` the pages of a stretch are
/// neighbours by their places, too.
template <class Visit>
void for_each_stretch(std::span<const PageMapping> pages, bool offsets_matter, Visit visit) {
  for (std::size_t i = 0; i < pages.size();) {
    Stretch stretch{pages[i].address, pages[i].page.value, pages[i].page_bytes, 1};
    for (++i; i < pages.size() && pages[i].address == stretch.address + stretch.size; ++i) {
      if (offsets_matter && pages[i].page.value != stretch.offset_bytes + stretch.size.count) break;
      stretch.size += pages[i].page_bytes;
      ++stretch.entries;
    }
    visit(stretch);
  }
}

}  // namespace vmm
