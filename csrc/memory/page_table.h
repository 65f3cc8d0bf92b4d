// The virtual pages of one reservation: what each is doing, and what it holds.
#pragma once

#include <cstdint>
#include <vector>

#include "base/types.h"

namespace vmm {

/// Unmapped → Mapping → Resident → Retiring → Unmapped. Mapping falls back to Unmapped when a driver call
/// fails, or to Retiring when even the undoing fails. Retiring → Resident when its owner wants it after all.
enum class VirtualState : std::uint8_t { unmapped, mapping, resident, retiring };

struct VirtualPage {
  ContentId content;
  VirtualState state = VirtualState::unmapped;
  bool kept = false;           // somebody needs it: never reclaimed
  std::uint16_t last_use = 0;  // of one that is not kept: see LastUses
};

/// Not thread-safe: the pool's lock guards it.
class PageTable {
 public:
  explicit PageTable(Pages size) : pages_(size.count) {}

  Pages size() const noexcept { return {pages_.size()}; }
  const VirtualPage& operator[](PageIndex page) const { return pages_.at(page.value); }

  /// Throws InvariantViolation unless the transition is one of the above. Leaving Resident ends `kept`.
  void move(PageIndex page, VirtualState to);
  void set_content(PageIndex page, ContentId content) { pages_.at(page.value).content = content; }
  /// Only a Resident page can be kept.
  void keep(PageIndex page, bool kept);
  /// Ends the need, if there is one: work until `last_use` may still use the page.
  void unkeep(PageIndex page, std::uint16_t last_use);

  /// Pages that are not Unmapped.
  Pages in_use() const noexcept { return in_use_; }
  Pages resident() const noexcept { return resident_; }
  Pages kept() const noexcept { return kept_; }

 private:
  std::vector<VirtualPage> pages_;
  Pages in_use_;
  Pages resident_;
  Pages kept_;
};

const char* name(VirtualState state) noexcept;

}  // namespace vmm
