// The virtual pages of one reservation: what each is doing, and what it holds.
#pragma once

#include <array>
#include <cstdint>
#include <vector>

#include "base/page_bits.h"
#include "memory/mapped_bytes.h"
#include "memory/virtual_page.h"

namespace vmm {

/// Not thread-safe: the pool's lock guards it.
class PageTable {
 public:
  /// `sums`: of all tables of a pool; what is counted here is counted there, too.
  PageTable(Pages size, Bytes page_bytes, MappedBytes& sums)
      : pages_(size.count),
        reclaimable_{PageBits(size), PageBits(size), PageBits(size)},
        idle_(size),
        aged_(size),
        page_bytes_(page_bytes),
        sums_(sums) {}

  Pages size() const noexcept { return {pages_.size()}; }
  const VirtualPage& operator[](PageIndex page) const { return pages_.at(page.value); }

  /// Throws InvariantViolation unless the transition is one of the above. Leaving Resident ends all need.
  void move(PageIndex page, VirtualState to);
  void set_content(PageIndex page, ContentId content) { pages_.at(page.value).content = content; }
  /// Only a Resident page can be needed.
  void set_need(PageIndex page, Need need);
  /// Ends the need, if there is one: work until `last_use` may still use the page if it was kept.
  void unkeep(PageIndex page, std::uint16_t last_use);

  /// Work until `last_use` may still use the page.
  void set_last_use(PageIndex page, std::uint16_t last_use);

  /// Pages that are not Unmapped.
  Pages in_use() const noexcept { return in_use_; }
  Pages resident() const noexcept { return resident_; }
  Pages kept() const noexcept { return kept_; }
  /// Resident pages of that need, less than kept.
  const PageBits& reclaimable(Need need) const { return reclaimable_.at(static_cast<std::size_t>(need)); }
  /// Resident pages that nobody has needed from the last call but one to the last, nor since, have aged.
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
  Pages in_use_;
  Pages resident_;
  Pages kept_;
};

const char* name(VirtualState state) noexcept;

}  // namespace vmm
