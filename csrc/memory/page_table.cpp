#include "memory/page_table.h"

#include <string>

#include "base/error.h"

namespace vmm {
namespace {

bool legal(VirtualState from, VirtualState to) {
  switch (from) {
    case VirtualState::unmapped:
      return to == VirtualState::mapping;
    case VirtualState::mapping:
      return to == VirtualState::resident || to == VirtualState::unmapped || to == VirtualState::retiring;
    case VirtualState::resident:
      return to == VirtualState::retiring;
    case VirtualState::retiring:
      return to == VirtualState::unmapped || to == VirtualState::resident;
  }
  return false;
}

}  // namespace

const char* name(VirtualState state) noexcept {
  switch (state) {
    case VirtualState::unmapped:
      return "Unmapped";
    case VirtualState::mapping:
      return "Mapping";
    case VirtualState::resident:
      return "Resident";
    case VirtualState::retiring:
      return "Retiring";
  }
  return "?";
}

void PageTable::move(PageIndex page, VirtualState to) {
  VirtualPage& entry = pages_.at(page.value);
  if (!legal(entry.state, to))
    throw InvariantViolation("virtual page " + std::to_string(page.value) + " cannot go from " +
                             name(entry.state) + " to " + name(to));
  if (entry.state == VirtualState::unmapped) in_use_ += Pages{1};
  if (to == VirtualState::unmapped) in_use_ -= Pages{1};
  count(page, entry, false);
  if (entry.state == VirtualState::resident) entry.need = Need::none;
  if (to == VirtualState::resident) entry.last_use = 0;
  entry.state = to;
  count(page, entry, true);
}

/// Into, or out of, the counts of Resident pages.
void PageTable::count(PageIndex page, const VirtualPage& entry, bool in) {
  if (entry.state != VirtualState::resident) return;
  sums_.count(entry, page_bytes_, in);
  const Pages one{1};
  in ? resident_ += one : resident_ -= one;
  if (entry.kept())
    in ? kept_ += one : kept_ -= one;
  else
    reclaimable_[static_cast<std::size_t>(entry.need)].set(page, in);
  if (in) return;
  idle_.set(page, false);
  aged_.set(page, false);
}

void PageTable::age() {
  const PageBits& surplus = reclaimable(Need::none);
  for (auto page = surplus.last_before(pages_.size()); page; page = surplus.last_before(page->value)) {
    if (idle_.has(*page)) aged_.set(*page, true);
    idle_.set(*page, true);
  }
}

void PageTable::set_need(PageIndex page, Need need) {
  VirtualPage& entry = pages_.at(page.value);
  if (entry.need == need) return;
  if (entry.state != VirtualState::resident)
    throw InvariantViolation("virtual page " + std::to_string(page.value) + " is " + name(entry.state) +
                             " and cannot be needed");
  count(page, entry, false);
  entry.need = need;
  count(page, entry, true);
}

void PageTable::set_last_use(PageIndex page, std::uint16_t last_use) {
  VirtualPage& entry = pages_.at(page.value);
  count(page, entry, false);
  entry.last_use = last_use;
  count(page, entry, true);
}

void PageTable::unkeep(PageIndex page, std::uint16_t last_use) {
  VirtualPage& entry = pages_.at(page.value);
  if (entry.kept()) entry.last_use = last_use;
  set_need(page, Need::none);
}

}  // namespace vmm
