// Pages of parked units on their way down to the tiers.
#include <algorithm>

#include "base/undo.h"
#include "engine/parking_needs.h"

namespace vmm {
namespace {

// Parts of the budget are kept free, or clean. What nobody keeps can be taken at any moment, and is lost then
// if it has no copy, so of that there is more.
constexpr std::uint64_t reserve_fraction_to_clean = 16;
constexpr std::uint64_t reserve_fraction_to_save = 4;

}  // namespace

/// Whether it would be cleaned, if it were chosen: what is wanted ahead has no memory yet, or gives it to
/// others who need it more.
bool Parking::cleanable(const Unit& one) {
  const bool ahead = one.phase == Phase::wanted || one.phase == Phase::there;
  return one.phase == Phase::idle || (ahead && !one.urgent);
}

/// How much must be copied, so that what nobody keeps is not lost when memory is needed.
Bytes Parking::in_danger(const Tenant& tenant) {
  const Bytes dirty = unsaved();
  if (dirty.count == 0) return {};
  const Bytes safe = pool().reclaiming().available(tenant, Need::guess);
  const Bytes wanted = pool().budget().limit() / reserve_fraction_to_save;
  return std::min(dirty, wanted - std::min(wanted, safe));
}

/// Has as many units cleaned as memory is short of.
void Parking::choose_victims() {
  const Bytes reserve = pool().budget().limit() / reserve_fraction_to_clean;
  Bytes lacking = demanded_, unsafe;
  if (!units_.empty()) {
    const auto some =
        std::ranges::find_if(units_, [](const auto& each) { return !each.second.pages.empty(); });
    if (some == units_.end()) return;
    const Tenant& tenant = some->second.pages.front().at.reservation->tenant;
    const Bytes available = pool().reclaiming().available(tenant, Need::announced);
    lacking = std::max(lacking, reserve - std::min(reserve, available));
    unsafe = tiers_->write_through() ? Bytes{~std::uint64_t{0}} : in_danger(tenant);
  }
  const auto will_be_cleaned = [&](const Unit& one) {
    const Bytes size = page_bytes_ * one.dirty;
    unsafe -= std::min(unsafe, size);
    if (!one.spare) lacking -= std::min(lacking, size);  // the memory of others counts as free already
  };
  for (const UnitId id : cleaning_)
    if (!pool().epochs().waits_for_open_epoch(unit(id).until))  // who knows when that is closed
      will_be_cleaned(unit(id));
  while (lacking.count != 0 || unsafe.count != 0) {
    const std::optional<UnitId> victim = next_victim();
    if (!victim) return;
    choose_to_clean(*victim, unit(*victim));
    will_be_cleaned(unit(*victim));
  }
}

void Parking::choose_to_clean(UnitId id, Unit& one) {
  leave_policy(id);
  one.cleaning = true;
  one.next = 0;
  cleaning_.push_back(id);
}

/// The unit that is to be cleaned next: the policy's choice; or else one that was chosen before, but was
/// wanted back then; or else one that is wanted ahead.
std::optional<UnitId> Parking::next_victim() {
  const auto to_clean = [&](UnitId id) { return can_clean(unit(id)) && !unit(id).cleaning; };
  while (const std::optional<UnitId> victim = policy_->victim(pool().clock().now())) {
    policy_->evicted(*victim);
    if (to_clean(*victim)) return victim;
  }
  std::optional<UnitId> ahead;
  for (const auto& [id, one] : units_) {
    if (!to_clean(id)) continue;
    if (one.phase == Phase::idle) return id;
    if (!ahead) ahead = id;
  }
  return ahead;
}

void Parking::clean(Left& left) {
  for (std::size_t i = 0; i < cleaning_.size() && room() != 0;) {
    Unit& one = unit(cleaning_[i]);
    if (!clean(cleaning_[i], one, left)) {
      ++i;
      continue;
    }
    one.cleaning = false;
    cleaning_.erase(cleaning_.begin() + static_cast<std::ptrdiff_t>(i));
  }
  if (!any_to_clean()) demanded_ = {};
  if (cleaning_.empty()) give_back_places();
}

/// Those that were taken for what is cleaned next.
void Parking::give_back_places() {
  for (const TierPlace& place : places_) tiers_->give_back(place);
  places_.clear();
}

/// Begins to copy pages of the unit. Returns whether nothing is left to do for it.
bool Parking::clean(UnitId id, Unit& one, Left& left) {
  if (!cleanable(one) || one.dirty == 0 || one.stuck) return true;
  if (!pool().epochs().complete(one.until)) {
    // Whoever closes an epoch wakes us.
    left.later |= !pool().epochs().waits_for_open_epoch(one.until);
    return false;
  }
  for (; one.next < one.pages.size() && room() != 0; ++one.next) {
    Page& page = one.pages[one.next];
    if (page.copied || page.moving || page.gone) continue;
    if (!take_places(one)) {
      if (one.spare) give_up_cleaning(one);  // others have the places
      return one.stuck;
    }
    if (one.spare && !keep_to_clean(one, page)) {
      if (one.stuck) return true;
      continue;
    }
    if (!begin_to_clean(id, one)) return false;
  }
  return false;
}

/// Begins to copy the unit's next page. False where the tiers take no more now.
bool Parking::begin_to_clean(UnitId id, Unit& one) {
  Page& page = one.pages[one.next];
  const auto put_back = [&] {
    if (one.spare) set_aside(one, [&](const Page& each) { return &each == &page; }, Need::guess);
  };
  page.place = places_.back();
  bool begun = false;
  try {
    begun = submit(TransferKind::write, id, one.next);
  } catch (...) {
    undo_or_leak(put_back);
    throw;
  }
  if (begun)
    places_.pop_back();
  else
    put_back();
  return begun;
}

/// Makes sure that there are places for what is cleaned next. False where there are none.
bool Parking::take_places(const Unit& one) {
  if (!places_.empty()) return true;
  places_ = tiers_->take(room());
  if (places_.empty() && (take_copies_of_running() || take_copies_of_spare(one)))
    places_ = tiers_->take(room());
  std::ranges::reverse(places_);  // they are used from the end, and those in order are written together
  return !places_.empty();
}

/// The tiers are full. Copies of what runs are of use only when that is parked again. Returns whether there
/// were any.
bool Parking::take_copies_of_running() {
  bool any = false;
  for (auto& [id, one] : units_)
    if (one.phase == Phase::running) any |= forget_copies(one);
  return any;
}

/// Returns whether there were any. What of a spare unit is not on the device is gone then.
bool Parking::forget_copies(Unit& one) {
  bool any = false;
  const Pool::Needs needs(pool());
  for (Page& page : one.pages) {
    if (!page.copied) continue;
    any = true;
    forget_copy(page);
    page.gone = !resident(needs, page);
    one.dirty += !page.gone;
  }
  return any;
}

}  // namespace vmm
