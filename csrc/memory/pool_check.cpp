// The invariants of the three tables, as docs/architecture.md numbers them.
#include <algorithm>
#include <map>
#include <string>

#include "base/error.h"
#include "memory/pool.h"

namespace vmm {
namespace {

void require(bool holds, const char* invariant, std::uint32_t where) {
  if (!holds) throw InvariantViolation(std::string(invariant) + " (at " + std::to_string(where) + ")");
}

}  // namespace

void Pool::check() const {
  fork_guard_.require_parent("this pool");
  std::lock_guard lock(mutex_);
  std::uint64_t held = 0;     // virtual pages with content
  std::uint64_t mapping = 0;  // virtual pages on their way in
  MappedBytes mapped;
  std::vector<std::uint8_t> owned(physical_.run_count(), 0);
  for (const auto& [id, reservation] : reservations_) {
    const PageTable& table = reservation->table;
    Pages in_use, resident, kept;
    for (std::uint32_t i = 0; i < table.size().count; ++i) {
      const VirtualPage& page = table[{i}];
      const bool has_content = page.state == VirtualState::resident || page.state == VirtualState::retiring;
      require(page.content.valid() == has_content, "I1: exactly Resident and Retiring pages have content", i);
      require(page.need == Need::none || page.state == VirtualState::resident,
              "I2: only Resident pages are needed", i);
      for (Need need : {Need::none, Need::guess, Need::announced})
        require(
            table.reclaimable(need).has({i}) == (page.state == VirtualState::resident && page.need == need),
            "I18: what is reclaimable is found", i);
      in_use += Pages{page.state != VirtualState::unmapped};
      resident += Pages{page.state == VirtualState::resident};
      kept += Pages{page.kept()};
      if (page.state == VirtualState::resident) mapped.count(page, reservation->shape.page_bytes, true);
      mapping += page.state == VirtualState::mapping;
      if (!has_content) continue;
      ++held;
      const Content& content = contents_[page.content];
      require(content.references == 1, "I3: a content counts the virtual pages that point to it", i);
      const PhysicalPage& physical = physical_[content.page];
      require(physical.mapped_by.reservation == reservation->id && physical.mapped_by.page.value == i,
              "I4: a physical page knows the virtual page that maps it", i);
      require(physical.run == reservation->window_runs[reservation->window_of({i})],
              "I5: a virtual page's memory is in its window's run", i);
      require(static_cast<bool>(physical.handle), "I6: a mapped physical page exists", i);
    }
    require(in_use == table.in_use() && resident == table.resident() && kept == table.kept(),
            "I7: a page table's counts are true", id);
    require(reservation->leased || kept.count == 0, "I8: an idle reservation keeps nothing", id);
    for (RunId run : reservation->window_runs) {
      if (!run.valid()) continue;
      require(++owned[run.value] == 1, "I9: a run has one owner", run.value);
      require(physical_.run(run).in_use != 0, "I10: a window without pages owns no run", run.value);
    }
  }
  require(mapped == mapped_, "I19: the sums of what is mapped are true", 0);
  require(held == contents_.live(), "I11: every content is pointed to", static_cast<std::uint32_t>(held));
  check_physical(owned, held, mapping);
}

void Pool::check_physical(const std::vector<std::uint8_t>& owned, std::uint64_t held,
                          std::uint64_t mapping) const {
  Bytes free_bytes, taken;
  std::map<Bytes, Bytes> recycled;
  std::uint64_t in_use = 0, filling = 0;
  for (std::uint32_t r = 0; r < physical_.run_count(); ++r) {
    const Run& run = physical_.run({r});
    const bool being_filled = std::ranges::find(filling_, RunId{r}) != filling_.end();
    require(run.owned == (owned[r] != 0 || being_filled), "I9: a run has one owner", r);
    if (being_filled) filling += run.in_use;
    std::uint32_t run_free = 0, run_in_use = 0;
    for (std::uint32_t i = 0; i < run.pages; ++i) {
      const PhysicalPage& page = physical_[{run.first.value + i}];
      run_free += page.state == PhysicalState::free;
      run_in_use += page.state == PhysicalState::busy || page.state == PhysicalState::mapped;
      require(page.state != PhysicalState::absent || !page.handle, "I12: an absent page has no handle", r);
      require(page.state != PhysicalState::free || page.handle, "I6: a free physical page exists", r);
      if (page.state != PhysicalState::absent) taken += run.page_bytes;
    }
    require(run_free == run.free && run_in_use == run.in_use, "I13: a run's counts are true", r);
    free_bytes += run.page_bytes * run_free;
    if (!run.owned) recycled[run.page_bytes] += run.page_bytes * run_free;
    in_use += run_in_use;
  }
  require(free_bytes == physical_.free_bytes(), "I14: the free bytes are true", 0);
  for (const auto& [page_bytes, size] : recycled)
    require(size == physical_.recycled(page_bytes), "I14: the recycled bytes are true", 0);
  require(taken == taken_, "I15: the pool took from the budget what it created", 0);
  require(taken_ <= budget_->taken(), "I15: the budget knows what the pool took", 0);
  require(held + mapping + filling + physical_.releasing() != 0 || in_transit_.count == 0,
          "I17: nothing is in transit when nothing moves", 0);
  require(in_use == held + mapping + filling, "I16: every physical page in use has a user", 0);
}

}  // namespace vmm
