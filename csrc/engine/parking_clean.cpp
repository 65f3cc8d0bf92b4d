// Pages of parked units on their way down to the tiers.
#include <algorithm>

#include "engine/parking.h"

namespace vmm {
namespace {

constexpr std::uint64_t reserve_fraction_to_clean = 16;  // of the budget is kept free, or clean

}  // namespace

/// Whether it would be cleaned, if it were chosen: what is wanted ahead has no memory yet, or gives it to
/// others who need it more.
bool Parking::cleanable(const Unit& one) {
  const bool ahead = one.phase == Phase::wanted || one.phase == Phase::there;
  return one.phase == Phase::idle || (ahead && !one.urgent);
}

/// Has as many units cleaned as memory is short of.
void Parking::choose_victims() {
  const Bytes reserve = pool().budget().limit() / reserve_fraction_to_clean;
  Bytes lacking = demanded_;
  if (!units_.empty()) {
    const auto some =
        std::ranges::find_if(units_, [](const auto& each) { return !each.second.pages.empty(); });
    if (some == units_.end()) return;
    const Tenant& tenant = some->second.pages.front().at.reservation->tenant;
    const Bytes available = pool().reclaiming().available(tenant, Need::announced);
    lacking = std::max(lacking, reserve - std::min(reserve, available));
  }
  for (const UnitId id : cleaning_)
    if (!pool().epochs().waits_for_open_epoch(unit(id).until))  // who knows when that is closed
      lacking -= std::min(lacking, page_bytes_ * unit(id).dirty);
  while (lacking.count != 0) {
    const std::optional<UnitId> victim = next_victim();
    if (!victim) return;
    Unit& one = unit(*victim);
    one.cleaning = true;
    one.next = 0;
    cleaning_.push_back(*victim);
    lacking -= std::min(lacking, page_bytes_ * one.dirty);
  }
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
  if (!cleaning_.empty()) return;
  for (const TierPlace& place : places_) tiers_->give_back(place);
  places_.clear();
  if (!any_to_clean()) demanded_ = {};
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
    if (page.copied || page.moving) continue;
    if (!take_places()) return false;
    page.place = places_.back();
    if (!submit(TransferKind::write, id, one.next)) return false;
    places_.pop_back();
  }
  return false;
}

/// Makes sure that there are places for what is cleaned next. False where there are none.
bool Parking::take_places() {
  if (!places_.empty()) return true;
  places_ = tiers_->take(room());
  if (places_.empty() && take_copies_of_running()) places_ = tiers_->take(room());
  std::ranges::reverse(places_);  // they are used from the end, and those in order are written together
  return !places_.empty();
}

/// The tiers are full. Copies of what runs are of use only when that is parked again. Returns whether there
/// were any.
bool Parking::take_copies_of_running() {
  bool any = false;
  for (auto& [id, one] : units_) {
    if (one.phase != Phase::running) continue;
    for (Page& page : one.pages) {
      any |= page.copied;
      forget_copy(page);
    }
  }
  return any;
}

}  // namespace vmm
