// The virtual pages of one reservation: what each is doing, and what it holds.
#pragma once

#include <array>
#include <cstdint>
#include <vector>

#include "base/page_bits.h"
#include "memory/mapped_bytes.h"
#include "memory/virtual_page.h"

namespace vmm {

class Sharing;

/// Not thread-safe: the pool's lock guards it.
class PageTable {
 public:
  /// `sums` are those of all tables of the pool, `owners` those of its tenant's: this table adds to both what
  /// it counts. `sharing` hears what becomes of shared pages.
  PageTable(Pages size, Bytes page_bytes, MappedBytes& sums, MappedBytes& owners, Sharing& sharing)
      : pages_(size.count),
        reclaimable_{PageBits(size), PageBits(size), PageBits(size)},
        idle_(size),
        aged_(size),
        page_bytes_(page_bytes),
        sums_(sums),
        owners_(owners),
        sharing_(sharing) {}

  Pages size() const noexcept { return {pages_.size()}; }
  const VirtualPage& operator[](PageIndex page) const { return pages_.at(page.value); }

  /// Throws InvariantViolation unless the transition is one of those in virtual_page.h. A page that leaves
  /// Resident is no longer needed; the work of `last_use` may still use one that becomes Resident.
  void move(PageIndex page, VirtualState to, std::uint16_t last_use = 0);
  void set_content(PageIndex page, ContentId content) { pages_.at(page.value).content = content; }
  /// Only a Resident page can be needed.
  void set_need(PageIndex page, Need need);
  /// Lowers the need for the page. If the page was kept, the work of `last_use` may still use it.
  void unkeep(PageIndex page, std::uint16_t last_use, Need need = Need::none);
  void set_last_use(PageIndex page, std::uint16_t last_use);

  /// For Sharing.
  void set_shared(PageIndex page, bool shared);
  void set_counted(PageIndex page, bool counted);

  /// Pages that are not Unmapped.
  Pages in_use() const noexcept { return in_use_; }
  Pages resident() const noexcept { return resident_; }
  Pages shared() const noexcept { return shared_; }
  /// The Resident pages that are counted and needed to this degree, which is less than kept.
  const PageBits& reclaimable(Need need) const { return reclaimable_.at(static_cast<std::size_t>(need)); }
  /// A page has aged when it is Resident and nobody has needed it since the last call but one.
  void age();
  const PageBits& aged() const noexcept { return aged_; }

 private:
  void count(PageIndex page, const VirtualPage& entry, bool in);

  std::vector<VirtualPage> pages_;
  std::array<PageBits, reclaimable_needs.size()> reclaimable_;
  PageBits idle_;  // needed by nobody when age() was last called, nor since
  PageBits aged_;  // … nor when it was called before
  const Bytes page_bytes_;
  MappedBytes& sums_;
  MappedBytes& owners_;
  Sharing& sharing_;
  Pages in_use_;
  Pages resident_;
  Pages shared_;
};

}  // namespace vmm
