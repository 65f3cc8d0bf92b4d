#include "memory/page_table.h"

#include <algorithm>
#include <iterator>
#include <string>
#include <utility>

#include "base/error.h"
#include "memory/sharing.h"

namespace vmm {
namespace {

constexpr const char* names[] = {"Unmapped", "Mapping", "Resident", "Retiring"};

bool legal(VirtualState from, VirtualState to) {
  using enum VirtualState;
  static constexpr std::pair<VirtualState, VirtualState> transitions[] = {
      {unmapped, mapping},  {mapping, resident},  {mapping, unmapped}, {mapping, retiring},
      {resident, retiring}, {retiring, unmapped}, {retiring, resident}};
  return std::ranges::find(transitions, std::pair(from, to)) != std::end(transitions);
}

const char* name(VirtualState state) { return names[static_cast<std::size_t>(state)]; }

}  // namespace

void PageTable::move(PageIndex page, VirtualState to, std::uint16_t last_use) {
  VirtualPage& entry = pages_.at(page.value);
  if (!legal(entry.state, to))
    throw InvariantViolation("virtual page " + std::to_string(page.value) + " cannot go from " +
                             name(entry.state) + " to " + name(to));
  if (entry.state == VirtualState::unmapped) in_use_ += Pages{1};
  if (to == VirtualState::unmapped) in_use_ -= Pages{1};
  count(page, entry, false);
  if (entry.state == VirtualState::resident) {
    entry.need = Need::none;
    entry.used = false;
  }
  if (to == VirtualState::resident) entry.last_use = last_use;
  entry.state = to;
  count(page, entry, true);
  if (entry.shared) sharing_.recount(entry.content);
}

/// Counts a page in, or out of, what is Resident.
void PageTable::count(PageIndex page, const VirtualPage& entry, bool in) {
  if (entry.state != VirtualState::resident) return;
  in ? resident_ += Pages{1} : resident_ -= Pages{1};
  if (!entry.counted) return;
  sums_.count(entry, page_bytes_, in);
  owners_.count(entry, page_bytes_, in);
  if (!entry.kept()) reclaimable_[static_cast<std::size_t>(entry.need)].set(page, in);
  if (in || entry.need != Need::none) return;
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
  entry.used |= entry.kept();
  count(page, entry, true);
  if (entry.shared) sharing_.recount(entry.content);
}

void PageTable::set_shared(PageIndex page, bool shared) {
  VirtualPage& entry = pages_.at(page.value);
  if (entry.shared == shared) return;
  entry.shared = shared;
  shared ? shared_ += Pages{1} : shared_ -= Pages{1};
}

void PageTable::set_counted(PageIndex page, bool counted) {
  VirtualPage& entry = pages_.at(page.value);
  if (entry.counted == counted) return;
  count(page, entry, false);
  entry.counted = counted;
  count(page, entry, true);
}

void PageTable::set_last_use(PageIndex page, std::uint16_t last_use) {
  VirtualPage& entry = pages_.at(page.value);
  if (entry.last_use == last_use) return;
  count(page, entry, false);
  entry.last_use = last_use;
  count(page, entry, true);
}

void PageTable::unkeep(PageIndex page, std::uint16_t last_use, Need need) {
  VirtualPage& entry = pages_.at(page.value);
  if (entry.kept()) entry.last_use = last_use;
  set_need(page, need);
}

}  // namespace vmm
