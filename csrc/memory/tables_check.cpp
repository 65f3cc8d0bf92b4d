// The invariants of the tables, as docs/architecture.md numbers them.
#include <algorithm>
#include <map>
#include <string>

#include "base/error.h"
#include "memory/tables.h"

namespace vmm {
namespace {

void require(bool holds, const char* invariant, std::uint32_t where) {
  if (!holds) throw InvariantViolation(std::string(invariant) + " (at " + std::to_string(where) + ")");
}

}  // namespace

/// What is counted on the way through the tables, to be compared with what they say.
struct Tables::Census {
  std::map<ContentId, std::uint64_t> holders;  // of each content
  std::uint64_t mapping = 0;                   // virtual pages on their way in
  std::uint64_t filling = 0;                   // physical pages being created for nobody yet
  std::uint64_t in_use = 0;                    // physical pages
  MappedCensus mapped;
  struct Owned {
    MappedCensus mapped;
    Bytes held;
    std::uint64_t reservations = 0;
  };
  std::map<const Tenant*, Owned> owned;
  Bytes free, taken;
  std::map<Bytes, Bytes> recycled;
  std::vector<std::uint8_t> owners;  // of each run
};

void Tables::check() const {
  Census census;
  census.owners.resize(physical_.run_count());
  for (const auto& [id, reservation] : reservations_) check_reservation(*reservation, census);
  require(mapped_.agrees_with(census.mapped), "I19: the sums of what is mapped are true", 0);
  require(census.holders.size() == contents_.live(), "I11: every content is pointed to",
          static_cast<std::uint32_t>(census.holders.size()));
  Bytes saved;
  for (const auto& [id, holders] : census.holders) {
    require(contents_[id].references == holders, "I3: a content counts the virtual pages that point to it",
            id.value);
    saved += physical_.page_bytes(contents_[id].page) * (holders - 1);
    check_shared(id, holders);
  }
  require(saved == saved_, "I20: what sharing saves is true", 0);
  for (std::uint32_t run = 0; run < physical_.run_count(); ++run) check_run({run}, census);
  require(census.free == physical_.free_bytes(), "I14: the free bytes are true", 0);
  for (const auto& [page_bytes, size] : census.recycled)
    require(size == physical_.recycled(page_bytes), "I14: the recycled bytes are true", 0);
  require(census.taken == allowance_.taken(), "I15: the pool took from the budget what it created", 0);
  require(allowance_.taken() <= allowance_.taken_by_all(), "I15: the budget knows what the pool took", 0);
  const std::uint64_t users = census.holders.size() + census.mapping + census.filling;
  check_tenants(census);
  require(users + physical_.releasing() != 0 || in_transit_.count == 0,
          "I17: nothing is in transit when nothing moves", 0);
  require(census.in_use == users, "I16: every physical page in use has a user", 0);
}

void Tables::check_reservation(const Reservation& reservation, Census& census) const {
  const PageTable& table = reservation.table;
  ++census.owned[&reservation.tenant].reservations;
  Pages in_use, resident, shared;
  bool keeps = false;
  for (std::uint32_t i = 0; i < table.size().count; ++i) {
    const VirtualPage& page = table[{i}];
    check_page(reservation, {i}, census);
    in_use += Pages{page.state != VirtualState::unmapped};
    resident += Pages{page.state == VirtualState::resident};
    shared += Pages{page.shared};
    keeps |= page.kept();
  }
  require(in_use == table.in_use() && resident == table.resident() && shared == table.shared(),
          "I7: a page table's counts are true", reservation.id.value);
  require(reservation.leased || !keeps, "I8: an idle reservation keeps nothing", reservation.id.value);
  for (RunId run : reservation.window_runs) {
    if (!run.valid()) continue;
    require(++census.owners[run.value] == 1, "I9: a run has one owner", run.value);
    require(physical_.run(run).in_use != 0, "I10: a window owns no run without pages in use", run.value);
    const WindowRef& window = physical_.run(run).window;
    require(window.reservation == reservation.id && reservation.window_runs[window.window] == run,
            "I5: a run knows its window", run.value);
  }
}

void Tables::check_page(const Reservation& reservation, PageIndex at, Census& census) const {
  const PageTable& table = reservation.table;
  const VirtualPage& page = table[at];
  const bool resident = page.state == VirtualState::resident;
  const bool sharing_soon = page.state == VirtualState::mapping && page.content.valid();
  const bool has_content = resident || sharing_soon || page.state == VirtualState::retiring;
  require(page.content.valid() == has_content,
          "I1: exactly Resident and Retiring pages have content, and those that will share one", at.value);
  require(page.need == Need::none || resident, "I2: only Resident pages are needed", at.value);
  require(page.used ? resident : !page.kept(), "I24: what is kept is used, as long as it is Resident",
          at.value);
  for (Need need : reclaimable_needs)
    require(table.reclaimable(need).has(at) == (resident && page.counted && page.need == need),
            "I18: what is reclaimable is found", at.value);
  Census::Owned& owned = census.owned[&reservation.tenant];
  if (resident && page.counted) {
    census.mapped.count(page, reservation.shape.page_bytes, true);
    owned.mapped.count(page, reservation.shape.page_bytes, true);
  }
  const bool mapping = page.state == VirtualState::mapping && !sharing_soon;
  census.mapping += mapping;
  if (mapping) owned.held += reservation.shape.page_bytes;
  if (!has_content) return;
  if (++census.holders[page.content] == 1) owned.held += reservation.shape.page_bytes;
  require(static_cast<bool>(physical_[contents_[page.content].page].handle),
          "I6: a mapped physical page exists", at.value);
  require(page.shared == !sharing_.of(page.content).empty(), "I20: a page knows whether it is shared",
          at.value);
}

/// The page that stands for a shared content is needed most of all that share it.
void Tables::check_shared(ContentId id, std::uint64_t holders) const {
  const std::span<const Alias> all = sharing_.of(id);
  require(all.size() == (holders == 1 ? 0 : holders), "I20: those that share a content know it", id.value);
  for (std::size_t i = 0; i < all.size(); ++i) {
    const VirtualPage& page = all[i].reservation->table[all[i].page];
    const VirtualPage& first = all[0].reservation->table[all[0].page];
    require(page.content == id && page.counted == (i == 0), "I20: one page stands for a content", id.value);
    require(&all[i].reservation->tenant == &all[0].reservation->tenant, "I22: a content has one owner",
            id.value);
    if (first.state == VirtualState::resident && !first.kept() && page.state != VirtualState::mapping)
      require(last_uses_.over(page.last_use) || !last_uses_.over(first.last_use),
              "I20: and is in use while work uses any of them", id.value);
    if (page.state == VirtualState::resident)
      require(first.state == VirtualState::resident && first.need >= page.need,
              "I20: it is needed as much as any that shares it", id.value);
    if (page.state == VirtualState::resident && page.need == first.need && !first.kept())
      require(all[0].reservation->use_of(all[0].page) >= all[i].reservation->use_of(all[i].page),
              "I20: and was used as late as any that is needed as much", id.value);
  }
}

void Tables::check_tenants(Census& census) const {
  Bytes promised;
  for (const auto& [id, tenant] : tenants_.all()) {
    const Census::Owned& owned = census.owned[tenant.get()];
    require(tenant->mapped.agrees_with(owned.mapped) && owned.held == tenant->held &&
                owned.reservations == tenant->reservations,
            "I21: what a tenant has is true", id);
    require(tenant->mapped.kept() <= tenant->terms.limit, "I23: nobody keeps more than his limit", id);
    promised += std::max(tenant->terms.guaranteed, tenant->mapped.kept());
  }
  require(!tenants_.any() || promised <= std::max(allowance_.maximum(), admitted_under_),
          "I23: the budget covers what tenants keep and are guaranteed", 0);
}

void Tables::check_run(RunId id, Census& census) const {
  const Run& run = physical_.run(id);
  const bool being_filled = std::ranges::find(filling_, id) != filling_.end();
  const bool windowless =
      run.in_use != 0 && !run.window.reservation.valid();  // left behind, or of loose pages
  require(run.owned == (census.owners[id.value] != 0 || being_filled || windowless),
          "I9: a run has one owner", id.value);
  if (being_filled) census.filling += run.in_use;
  std::uint32_t free = 0, in_use = 0;
  for (std::uint32_t i = 0; i < run.pages; ++i) {
    const PhysicalPage& page = physical_[{run.first.value + i}];
    free += page.state == PhysicalState::free;
    in_use += page.state == PhysicalState::busy || page.state == PhysicalState::mapped;
    require(page.state != PhysicalState::absent || !page.handle, "I12: an absent page has no handle",
            id.value);
    require(page.state != PhysicalState::free || page.handle, "I6: a free physical page exists", id.value);
    if (page.state != PhysicalState::absent) census.taken += run.page_bytes;
  }
  require(free == run.free && in_use == run.in_use, "I13: a run's counts are true", id.value);
  census.free += run.page_bytes * free;
  if (!run.owned) census.recycled[run.page_bytes] += run.page_bytes * free;
  census.in_use += in_use;
}

}  // namespace vmm
