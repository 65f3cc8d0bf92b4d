// How much the pages of parked units are needed.
#pragma once

#include "engine/parking.h"

namespace vmm {

/// The pages of the unit that `is(page)`, by their reservations.
template <class Is>
Parking::Ranges Parking::ranges(const Unit& unit, Is is) {
  Ranges out;
  for (const Page& each : unit.pages) {
    if (!is(each)) continue;
    if (out.empty() || out.back().first != each.at.reservation) out.push_back({each.at.reservation, {}});
    std::vector<PageRange>& last = out.back().second;
    if (!last.empty() && last.back().first.value + last.back().count.count == each.at.page.value)
      last.back().count += Pages{1};
    else
      last.push_back({each.at.page, {1}});
  }
  return out;
}

/// Those of the unit's pages that `is(page)` are needed only to this degree.
template <class Is>
void Parking::set_aside(const Unit& unit, Is is, Need need) {
  for (const auto& [reservation, pages] : ranges(unit, is))
    pool().set_aside(*reservation, pages, unit.until, need);
}

/// The same for pages that nobody keeps; the need of these may rise.
template <class Is>
void Parking::set_need(const Unit& unit, Is is, Need need) {
  Pool::Needs needs(pool());
  for (const auto& [reservation, pages] :
       ranges(unit, [&](const Page& page) { return is(page) && resident(needs, page); }))
    needs.set(*reservation, pages, need);
}

/// Unmaps those of the unit's pages that `is(page)`.
template <class Is>
void Parking::unmap(const Unit& unit, Is is) {
  for (const auto& [reservation, pages] : ranges(unit, is)) pool().retire(*reservation, pages, unit.until);
}

}  // namespace vmm
