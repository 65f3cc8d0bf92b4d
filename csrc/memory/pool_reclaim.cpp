// Getting physical memory back: free pages first, then what is mapped but needed by nobody.
#include <algorithm>
#include <exception>

#include "base/error.h"
#include "memory/pool.h"

namespace vmm {

/// Of what may be created, by the budget and by what the device has.
Bytes Pool::budget_left() const {
  const Bytes limit = budget_->limit();
  return std::min(saturating_sub(limit, budget_->taken()), device_left());
}

Bytes Pool::device_left() const { return device_limit_.left(taken_, clock_->now()); }

void Pool::forget_device_limit() {
  std::lock_guard lock(mutex_);
  if (device_limit_.until(clock_->now())) note_given_up(true);  // so may whoever starved because of it
  device_limit_.forget();
}

MemoryFigures Pool::figures(Bytes asked) const {
  std::lock_guard lock(mutex_);
  return figures_locked(asked);
}

MemoryFigures Pool::figures_locked(Bytes asked) const {
  const Bytes limit = budget_->limit(), taken = budget_->taken();
  const bool of_device = taken + device_left() < limit;
  return {asked,
          budget_left() + physical_.free_bytes(),
          mapped_.reclaimable(),
          limit,
          driver_->capabilities().gpu,
          saturating_sub(taken, limit),
          of_device ? device_limit_.words() : ""};
}

bool Pool::is_obtainable(const VirtualPage& page, StreamHandle stream) const {
  return page.state == VirtualState::resident && !page.kept() && last_uses_.ends(page.last_use, stream);
}

std::int64_t Pool::obtainable(StreamHandle stream) const {
  fork_guard_.require_parent("this pool");
  std::lock_guard lock(mutex_);
  const Bytes taken = budget_->taken();
  Bytes sum = std::min(budget_->limit(), taken + device_left()) + physical_.free_bytes() + coming() +
              mapped_.reclaimable();
  last_uses_.for_each_not_over([&](std::uint16_t number) {
    if (!last_uses_.ends(number, stream)) sum -= mapped_.last_used(number);
  });
  return static_cast<std::int64_t>(sum.count) - static_cast<std::int64_t>(taken.count);
}

std::int64_t Pool::cost(const Reservation& reservation, std::span<const PageRange> ranges,
                        StreamHandle stream) const {
  fork_guard_.require_parent("this pool");
  std::lock_guard lock(mutex_);
  check_ranges(reservation, ranges);
  std::uint64_t count = 0;
  for_each_page(ranges, [&](PageIndex page) {
    const VirtualPage& entry = reservation.table[page];
    count += entry.state != VirtualState::resident || is_obtainable(entry, stream);
    return true;
  });
  return static_cast<std::int64_t>((reservation.shape.page_bytes * count).count);
}

/// Memory that is not to be had yet, but will be without anybody's doing.
Bytes Pool::coming() const {
  Bytes sum = in_transit_;
  for (const Retirement& entry : retired_)
    if (entry.intact && !epochs_.waits_for_open_epoch(entry.fence))
      sum += entry.what.reservation->shape.page_bytes * entry.what.pages.size();
  return sum;
}

void Pool::require_obtainable(Bytes asked, Need whose) {
  for (;;) {
    std::unique_lock lock(mutex_);
    const MemoryFigures have = figures_locked(asked);
    const Bytes limit = budget_->limit();
    // A budget that has been lowered is first to be met.
    const Bytes needed = asked + saturating_sub(budget_->taken(), limit);
    if (have.free + have.reclaimable >= needed) return;
    // Who maps ahead must not be held up: there is other work, and it is told when memory is given up.
    const Bytes coming_soon = whose == Need::kept ? coming() : Bytes{};
    if (have.free + have.reclaimable + coming_soon < needed) throw OutOfPages(have, "");
    clock_->wait(lock, changed_, recheck);
    lock.unlock();
    drain_retired();
  }
}

/// Frees something, or waits until others have; throws OutOfPages before anything is touched.
void Pool::make_room(Bytes asked, const Shortage& shortage, Need whose) {
  epochs_.poll();
  require_obtainable(asked, whose);
  // What is unmapped the next plan takes as it is where it can: runs of whole windows, which idle
  // reservations leave. The rest it gives back here, in exchange for budget.
  Bytes made = release_pages(shortage.nobodys);
  const auto lacking = [&] { return saturating_sub(shortage.lacking, made); };
  if (lacking().count != 0) made += reclaim(lacking(), Need::none);
  if (lacking().count != 0) made += release_pages(shortage.strays);
  if (lacking().count != 0) made += reclaim(lacking(), whose);
  if (made.count != 0) return;
  {
    std::lock_guard lock(mutex_);
    // Somebody else has made room?
    if (budget_left() >= shortage.to_create || physical_.freed() != shortage.freed) return;
  }
  if (whose != Need::kept || !await_coming(whose))
    throw OutOfPages(figures(asked), "what is reclaimable is still in use by unfinished work");
}

/// Whether it helps to reclaim again: there is something now, or it waited a moment because memory will come
/// without anybody's doing.
bool Pool::await_coming(Need whose) {
  epochs_.poll();  // a capture that has ended holds nothing back
  {
    std::lock_guard lock(mutex_);
    if (!choose_victims({1}, whose).empty()) return true;
  }
  return await_moment();
}

/// Waits a moment where memory, and with it mappings, will come without anybody's doing; else false.
bool Pool::await_moment() {
  {
    std::unique_lock lock(mutex_);
    const bool ending = last_uses_.refresh() && mapped_.reclaimable().count != 0;
    if (coming().count == 0 && !ending) return false;
    clock_->wait(lock, changed_, recheck);
  }
  drain_retired();
  return true;
}

Bytes Pool::reclaim(Bytes wanted, Need whose) {
  Retirements victims;
  {
    std::lock_guard lock(mutex_);
    victims = begin_retiring(choose_victims(wanted, whose));
  }
  return unmap_victims(std::move(victims));
}

/// Of idle reservations, the longest idle first; then what leased ones have that is needed less than `whose`,
/// the least first.
std::vector<Pool::Unmapping> Pool::choose_victims(Bytes wanted, Need whose) {
  std::vector<Unmapping> victims;
  last_uses_.refresh();
  Bytes found;
  add_victims(wanted, true, Need::none, found, victims);
  for (Need need : {Need::none, Need::guess, Need::announced})
    if (need < whose) add_victims(wanted, false, need, found, victims);
  return victims;
}

void Pool::add_victims(Bytes wanted, bool idle, Need need, Bytes& found, std::vector<Unmapping>& out) {
  if (found >= wanted || mapped_.reclaimable(need).count == 0) return;
  std::vector<Reservation*> order;
  for (auto& [id, reservation] : reservations_)
    if (reservation->leased != idle) order.push_back(reservation.get());
  std::ranges::sort(order, {}, &Reservation::idle_since);
  for (Reservation* reservation : order) {
    const PageTable& table = reservation->table;
    const PageBits& pages = table.reclaimable(need);
    Unmapping victim{reservation, {}};
    std::uint64_t window = ~std::uint64_t{0};
    for (auto page = pages.last_before(table.size().count); page; page = pages.last_before(page->value)) {
      // Whole windows where nobody is at home, or their runs could not be recycled.
      if (found >= wanted && (reservation->leased || reservation->window_of(*page) != window)) break;
      if (!last_uses_.over(table[*page].last_use)) continue;
      window = reservation->window_of(*page);
      victim.pages.push_back(*page);
      found += reservation->shape.page_bytes;
    }
    std::ranges::reverse(victim.pages);  // ascending: neighbours are unmapped by one call
    if (!victim.pages.empty()) out.push_back(std::move(victim));
    if (found >= wanted) break;
  }
}

Bytes Pool::owed() const {
  std::lock_guard lock(mutex_);
  const Bytes limit = budget_->limit();
  const Bytes exceeded = saturating_sub(budget_->taken(), limit);
  return std::min(exceeded, physical_.free_bytes() + mapped_.reclaimable());
}

bool Pool::anything_free() const {
  std::lock_guard lock(mutex_);
  return physical_.free_bytes().count != 0;
}

Bytes Pool::trim(Bytes wanted, bool wait, Need whose) {
  fork_guard_.require_parent("this pool");
  epochs_.poll();
  Bytes given_back;
  try {
    for (;;) {
      given_back += release_free(wanted - given_back);
      if (given_back >= wanted) break;
      if (reclaim(wanted - given_back, whose).count != 0 || anything_free()) continue;
      if (!wait || !may_wait() || !await_coming(whose)) break;
    }
  } catch (const Error&) {  // what the driver refused is logged, and tried again by the pager
    if (given_back.count == 0) throw;
  }
  return given_back;
}

}  // namespace vmm
