// What a host driver has mapped, and how many memory mappings that costs the process.
#pragma once

#include <cstdint>
#include <iterator>
#include <map>
#include <span>

#include "driver/driver.h"

namespace vmm {

/// The system makes one mapping of two pages that are neighbours by address and by place. Not thread-safe.
class MappedPages {
 public:
  /// Returns how many mappings the process has more then: at most two for a page, and fewer where it joins
  /// its neighbours. Adds nothing when it throws std::bad_alloc.
  std::int64_t add(std::span<const PageMapping> pages) {
    std::int64_t more = 0;
    for (std::size_t i = 0; i < pages.size(); ++i) {
      try {
        const Page page{pages[i].page_bytes, pages[i].page.value};
        more += cost(pages_.insert_or_assign(pages[i].address.value, page).first);
      } catch (...) {
        remove(pages.first(i));
        throw;
      }
    }
    return more;
  }
  /// The same, of pages that are there; mostly below 0.
  std::int64_t remove(std::span<const PageMapping> pages) noexcept {
    std::int64_t more = 0;
    for (const PageMapping& page : pages) {
      const auto found = pages_.find(page.address.value);
      if (found == pages_.end()) continue;
      more -= cost(found);
      pages_.erase(found);
    }
    return more;
  }

 private:
  struct Page {
    Bytes size;
    std::uint64_t place;
  };
  using Pages = std::map<std::uintptr_t, Page>;

  /// A page alone cuts the mapping around it in two, and is a third. Where it touches another, there is
  /// nothing left between them; and if it goes on where that one ends, they are one.
  std::int64_t cost(Pages::const_iterator page) const {
    const auto next = std::next(page);
    return 2 - (page == pages_.begin() ? 0 : joined(*std::prev(page), *page)) -
           (next == pages_.end() ? 0 : joined(*page, *next));
  }
  static std::int64_t joined(const Pages::value_type& a, const Pages::value_type& b) {
    if (a.first + a.second.size.count != b.first) return 0;
    return a.second.place + a.second.size.count == b.second.place ? 2 : 1;
  }

  Pages pages_;
};

}  // namespace vmm
