// Out of mappings: what is retired, what is being unmapped, and what that frees.
#include <algorithm>
#include <iterator>
#include <new>
#include <utility>

#include "memory/tables.h"

namespace vmm {
namespace {

/// Without memory to remember it, the page stays with the pool, free.
void note_to_release(PhysicalPageId page, Unmapped& freed) noexcept {
  try {
    freed.to_release.push_back(page);
  } catch (const std::bad_alloc&) {
  }
}

}  // namespace

void Tables::unkeep(Reservation& reservation, PageIndex page, std::uint16_t last_use, Need need) {
  if (reservation.table[page].need <= need) return;
  reservation.table.unkeep(page, last_use, need);
  if (reservation.table[page].shared) share_last_use(reservation.table[page].content);
}

/// Memory can be taken when all work that was told of is over, at whichever of its addresses that is. So
/// until then each page that may come to stand for the content says so.
void Tables::share_last_use(ContentId content) {
  std::vector<std::uint16_t> uses;
  for (const Alias& each : sharing_.of(content)) {
    const VirtualPage& page = each.reservation->table[each.page];
    const bool given_up =
        page.state == VirtualState::retiring || (page.state == VirtualState::resident && !page.kept());
    if (given_up && !last_uses_.over(page.last_use) && std::ranges::find(uses, page.last_use) == uses.end())
      uses.push_back(page.last_use);
  }
  const std::uint16_t all = uses.empty() ? LastUses::none : last_uses_.number_of_all(uses);
  for (const Alias& each : sharing_.of(content)) {
    const VirtualPage& page = each.reservation->table[each.page];
    if (page.state == VirtualState::resident && !page.kept())
      each.reservation->table.set_last_use(each.page, all);
  }
}

void Tables::retire(Reservation& reservation, std::span<const PageRange> ranges, Fence fence,
                    bool to_system) {
  std::vector<PageIndex> pages;
  for (PageIndex page : each_page(ranges))
    if (reservation.table[page].state == VirtualState::resident) pages.push_back(page);
  std::ranges::sort(pages);  // The ranges may overlap, in any order.
  pages.erase(std::unique(pages.begin(), pages.end()), pages.end());
  if (pages.empty()) return;
  Retirements batch;
  batch.emplace_back(reservation, std::move(pages), std::move(fence));
  Retirement& gone = batch.back();
  gone.last_use = last_uses_.number(gone.fence);
  gone.to_system = to_system;
  for (PageIndex page : gone.pages) {
    reservation.table.move(page, VirtualState::retiring);
    reservation.table.set_last_use(page, gone.last_use);
  }
  retired_.add(batch);
  for (PageIndex page : gone.pages)
    if (reservation.table[page].shared) share_last_use(reservation.table[page].content);
}

void Tables::rescue(Reservation& reservation, PageIndex page) {
  const bool must_go = reservation.shape.zeroed || contents_[reservation.table[page].content].references > 1;
  std::optional<Fence> readers = retired_.fence_of(reservation, page, must_go);
  if (!readers) return;
  const std::uint16_t last_use = last_uses_.number(std::move(*readers));  // They may still read it.
  retired_.call_back(reservation, page);
  reservation.table.move(page, VirtualState::resident, last_use);
}

bool Tables::all_retiring(ContentId content) const {
  return std::ranges::all_of(sharing_.of(content), [](const Alias& each) {
    return each.reservation->table[each.page].state == VirtualState::retiring;
  });
}

/// How much memory will be free once these pages are unmapped, and what holds the same. What is shared is
/// counted at the first page of those that wait to be unmapped, if all that wait are `too`.
Bytes Tables::will_free(const Retirement& what, const std::function<bool(const Retirement&)>& too) const {
  const Reservation& reservation = *what.reservation;
  if (reservation.table.shared().count == 0) return what.size();
  const auto counts = [&](PageIndex page) {
    const VirtualPage& entry = reservation.table[page];
    if (!entry.shared) return true;
    if (!all_retiring(entry.content)) return false;
    const Alias* first = nullptr;
    for (const Alias& each : sharing_.of(entry.content)) {
      const Retirement* waits = retired_.find(*each.reservation, each.page);
      if (waits == nullptr) continue;  // its unmapping is under way
      if (!too(*waits)) return false;
      if (first == nullptr) first = &each;
    }
    return first != nullptr && first->reservation == &reservation && first->page == page;
  };
  return reservation.shape.page_bytes * static_cast<std::uint64_t>(std::ranges::count_if(what.pages, counts));
}

/// What will be free when the driver has unmapped the batch. What is shared is counted with the last that
/// waited, at the first page of that batch.
void Tables::count_as_in_transit(Retirements& batch) {
  const auto in_batch = [&](const Alias& alias) {
    return std::ranges::any_of(
        batch, [&](const Retirement& entry) { return entry.has(*alias.reservation, alias.page); });
  };
  const auto counts = [&](Reservation& reservation, PageIndex page) {
    const VirtualPage& entry = reservation.table[page];
    if (!entry.shared) return true;
    const std::span<const Alias> all = sharing_.of(entry.content);
    if (!all_retiring(entry.content)) return false;
    if (std::ranges::any_of(all,
                            [&](const Alias& each) { return retired_.find(*each.reservation, each.page); }))
      return false;
    return *std::ranges::find_if(all, in_batch) == Alias{&reservation, page};
  };
  for (Retirement& entry : batch) {
    const auto pages =
        std::ranges::count_if(entry.pages, [&](PageIndex page) { return counts(*entry.reservation, page); });
    entry.in_transit = entry.reservation->shape.page_bytes * static_cast<std::uint64_t>(pages);
    add_in_transit(entry.reservation->tenant, entry.in_transit);
  }
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

/// The memory of those that wait, are the tenant's, if it is said, and `are`.
Bytes Tables::waiting_to_be_free(const Tenant* tenant,
                                 const std::function<bool(const Retirement&)>& are) const {
  return retired_.sum([&](const Retirement& entry) {
    const bool counts = tenant == nullptr || &entry.reservation->tenant == tenant;
    return counts && are(entry) ? will_free(entry, are) : Bytes{};
  });
}

Bytes Tables::coming() const {
  return in_transit_ +
         waiting_to_be_free(nullptr, [&](const Retirement& each) { return retired_.comes(each); });
}

Bytes Tables::coming(const Tenant& tenant) const {
  return tenant.in_transit +
         waiting_to_be_free(&tenant, [&](const Retirement& each) { return retired_.comes(each); });
}

Bytes Tables::on_its_way(const Tenant& tenant) const {
  return tenant.in_transit + waiting_to_be_free(&tenant, [&](const Retirement& each) {
           return retired_.comes(each) && last_uses_.over(each.last_use);
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
      reservation.table.set_last_use(page, LastUses::none);
      settle(content);
      continue;
    }
    if (drop_content(reservation, page)) {
      freed.size += reservation.shape.page_bytes;
      if (what.to_system || physical_[id].exported) note_to_release(id, freed);
    }
    reservation.table.move(page, VirtualState::unmapped);
  }
  what.pages.erase(what.pages.begin(), what.pages.begin() + static_cast<std::ptrdiff_t>(what.done));
  what.intact = false;
  what.fence.clear();
}

}  // namespace vmm
