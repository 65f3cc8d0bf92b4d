// The virtual pages of one reservation: what each is doing, and what it holds.
#pragma once

#include <array>
#include <cstdint>
#include <vector>

#include "base/types.h"
#include "memory/page_bits.h"

namespace vmm {

/// Unmapped → Mapping → Resident → Retiring → Unmapped. Mapping falls back to Unmapped when a driver call
/// fails, or to Retiring when even the undoing fails. Retiring → Resident when its owner wants it after all.
enum class VirtualState : std::uint8_t { unmapped, mapping, resident, retiring };

/// How much a Resident page is needed. Who maps pages may take those that are needed less.
enum class Need : std::uint8_t {
  none,       // surplus, or a look-ahead
  guess,      // ready for who may come
  announced,  // will be used soon
  kept,       // in use: never reclaimed
};

struct VirtualPage {
  ContentId content;
  VirtualState state = VirtualState::unmapped;
  Need need = Need::none;
  std::uint16_t last_use = 0;  // of one that is not kept: see LastUses

  bool kept() const { return need == Need::kept; }
};

/// Not thread-safe: the pool's lock guards it.
class PageTable {
 public:
  explicit PageTable(Pages size)
      : pages_(size.count), reclaimable_{PageBits(size), PageBits(size), PageBits(size)} {}

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
  void set_last_use(PageIndex page, std::uint16_t last_use) { pages_.at(page.value).last_use = last_use; }

  /// Pages that are not Unmapped.
  Pages in_use() const noexcept { return in_use_; }
  Pages resident() const noexcept { return resident_; }
  Pages kept() const noexcept { return kept_; }
  /// Resident pages of that need, less than kept.
  const PageBits& reclaimable(Need need) const { return reclaimable_.at(static_cast<std::size_t>(need)); }

 private:
  void count(PageIndex page, const VirtualPage& entry, bool in);

  std::vector<VirtualPage> pages_;
  std::array<PageBits, 3> reclaimable_;  // by need
  Pages in_use_;
  Pages resident_;
  Pages kept_;
};

const char* name(VirtualState state) noexcept;

}  // namespace vmm
