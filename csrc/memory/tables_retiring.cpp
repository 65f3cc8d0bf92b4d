// Out of mappings: what is retired, what is being unmapped, and what that frees.
#include <algorithm>
#include <iterator>
#include <utility>

#include "memory/tables.h"

namespace vmm {

void Tables::retire(Reservation& reservation, std::span<const PageRange> ranges, Fence fence) {
  std::vector<PageIndex> pages;
  for (PageIndex page : each_page(ranges))
    if (reservation.table[page].state == VirtualState::resident) pages.push_back(page);
  std::ranges::sort(pages);  // The ranges may overlap, in any order.
  pages.erase(std::unique(pages.begin(), pages.end()), pages.end());
  if (pages.empty()) return;
  Retirements batch;
  batch.emplace_back(reservation, std::move(pages), std::move(fence));
  for (PageIndex page : batch.back().pages) reservation.table.move(page, VirtualState::retiring);
  retired_.add(batch);
}

void Tables::rescue(Reservation& reservation, PageIndex page) {
  const bool must_go = reservation.shape.zeroed || contents_[reservation.table[page].content].references > 1;
  std::optional<Fence> readers = retired_.fence_of(reservation, page, must_go);
  if (!readers) return;
  const std::uint16_t last_use = last_uses_.number(std::move(*readers));  // They may still read it.
  retired_.call_back(reservation, page);
  reservation.table.move(page, VirtualState::resident, last_use);
}

/// How much memory will be free once this Retiring page is unmapped, and all others that are Retiring.
Bytes Tables::will_free(const Reservation& reservation, PageIndex page) const {
  if (reservation.table[page].shared) {
    const std::span<const Alias> all = sharing_.of(reservation.table[page].content);
    const bool all_go = std::ranges::all_of(all, [](const Alias& each) {
      return each.reservation->table[each.page].state == VirtualState::retiring;
    });
    if (!all_go || all.front() != Alias{const_cast<Reservation*>(&reservation), page}) return {};
  }
  return reservation.shape.page_bytes;
}

Bytes Tables::will_free(const Retirement& what) const {
  if (what.reservation->table.shared().count == 0) return what.size();
  Bytes sum;
  for (PageIndex page : what.pages) sum += will_free(*what.reservation, page);
  return sum;
}

void Tables::count_as_in_transit(Retirements& batch) {
  for (Retirement& entry : batch)
    add_in_transit(entry.reservation->tenant, entry.in_transit = will_free(entry));
}

void Tables::begin_retiring(Retirements& batch) {
  for (const Retirement& entry : batch)
    for (PageIndex page : entry.pages) entry.reservation->table.move(page, VirtualState::retiring);
  count_as_in_transit(batch);
}

Retirements Tables::take_over(bool refused_too) {
  Retirements over = retired_.take_over(refused_too);
  count_as_in_transit(over);
  return over;
}

Bytes Tables::coming() const {
  return in_transit_ + retired_.coming([this](const Retirement& entry) { return will_free(entry); });
}

Bytes Tables::coming(const Tenant& tenant) const {
  return tenant.in_transit + retired_.coming([&](const Retirement& entry) {
    return &entry.reservation->tenant == &tenant ? will_free(entry) : Bytes{};
  });
}

void Tables::begin_unmapping(Retirement& what) {
  what.mappings.clear();
  what.done = 0;
  for (PageIndex page : what.pages) {
    const ContentId content = what.reservation->table[page].content;
    const PhysicalPageId id = contents_[content].page;
    contents_.begin_unmapping(content);
    settle(content);
    what.mappings.push_back(
        {what.reservation->address_of(page), physical_[id].handle.get(), physical_.page_bytes(id)});
  }
}

Unmapped Tables::end_unmapping(Retirements& batch) {
  Unmapped freed;
  for (auto entry = batch.begin(); entry != batch.end();) {
    leave_transit(entry->reservation->tenant, entry->in_transit);
    end_unmapping(*entry, freed);
    Reservation& reservation = *entry->reservation;
    entry = entry->pages.empty() ? batch.erase(entry) : std::next(entry);
    erase_if_empty(reservation);
  }
  retired_.add(batch);
  return freed;
}

/// Keeps in `what`, as refused, the pages that the driver has not unmapped.
void Tables::end_unmapping(Retirement& what, Unmapped& freed) {
  Reservation& reservation = *what.reservation;
  for (std::size_t i = 0; i < what.pages.size(); ++i) {
    const PageIndex page = what.pages[i];
    const ContentId content = reservation.table[page].content;
    const PhysicalPageId id = contents_[content].page;
    contents_.end_unmapping(content);
    if (i >= what.done) {
      settle(content);
      continue;
    }
    if (drop_content(reservation, page)) {
      freed.size += reservation.shape.page_bytes;
      if (physical_[id].exported) freed.exported.push_back(id);
    }
    reservation.table.move(page, VirtualState::unmapped);
  }
  what.pages.erase(what.pages.begin(), what.pages.begin() + static_cast<std::ptrdiff_t>(what.done));
  what.intact = false;
  what.fence.clear();
}

}  // namespace vmm
