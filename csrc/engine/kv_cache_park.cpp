// Sequences that are idle, and come back.
#include <algorithm>
#include <string>
#include <utility>

#include "base/error.h"
#include "engine/kv_cache.h"
#include "engine/parking.h"

namespace vmm {
namespace {

std::string described(const std::vector<SequenceLost::Loss>& losses) {
  std::string out = "the copies of tokens were not good, and these are lost:";
  for (const SequenceLost::Loss& each : losses)
    out += " of the sequence in slot " + std::to_string(each.slot) + " those from " +
           std::to_string(each.first.count) + " on;";
  out.back() = '.';
  return out;
}

}  // namespace

SequenceLost::SequenceLost(std::vector<Loss> losses) : Error(described(losses)), losses_(std::move(losses)) {}

void KvCache::park(std::uint32_t slot, const ParkHint& hint, StreamHandle stream) {
  slots_->pool().fork_guard().require_parent("this cache");
  if (!options_.parking)
    throw InvalidArgument(
        "park: the pool has no tier to which idle sequences could go; make it with host= or nvme=");
  std::lock_guard lock(mutex_);
  require_awake(slot);
  if (lengths_[slot] == 0) return;
  require_copied(slot);
  const Tokens length{lengths_[slot]};
  Parked& parked = unit_of(slot);
  const Fence until = readers(users_[slot], stream);
  ParkHint told = hint;
  told.new_tokens = (length - std::min(length, parked.since)).count;
  Slots::Needs(*slots_).note_use(slot);
  options_.parking->park(parked.unit, slots_->pages_of(slot, length), until, told);
  try {
    slots_->park(slot, length, until);
  } catch (...) {
    options_.parking->take(parked.unit, length);
    throw;
  }
  parked.since = parked.length = length;
  fences_[slot] = until;
  states_[slot] = SlotState::parked;
  previous_[slot] = lengths_[slot];
}

void KvCache::prefetch(std::span<const std::int32_t> slots, Nanoseconds by) {
  slots_->pool().fork_guard().require_parent("this cache");
  std::lock_guard lock(mutex_);
  for (const std::int32_t slot : slots) require_open(static_cast<std::uint32_t>(slot));
  for (const std::int32_t number : slots) {
    const auto slot = static_cast<std::uint32_t>(number);
    if (states_[slot] == SlotState::parked) options_.parking->want(parked_.at(slot).unit, by, false);
  }
}

bool KvCache::ready(std::uint32_t slot) {
  std::lock_guard lock(mutex_);
  require_open(slot);
  return is_awake(slot) || options_.parking->there(parked_.at(slot).unit);
}

std::optional<Nanoseconds> KvCache::load_time(std::uint32_t slot) {
  std::lock_guard lock(mutex_);
  require_open(slot);
  return is_awake(slot) ? Nanoseconds{} : options_.parking->load_time(parked_.at(slot).unit);
}

Tokens KvCache::lost(std::uint32_t slot) const {
  std::lock_guard lock(mutex_);
  require_open(slot);
  const auto parked = parked_.find(slot);
  return parked == parked_.end() ? Tokens{} : parked->second.lost;
}

void KvCache::wake(std::unique_lock<Mutex>& lock, std::uint32_t slot) {
  const auto number = static_cast<std::int32_t>(slot);
  const std::span slots(&number, 1);
  try {
    while (!is_awake(slot)) {
      bring_back(lock, slots);
      require_open(slot);
    }
  } catch (...) {
    unwant(slots);
    throw;
  }
}

/// Whether all tokens of these are on the device; if not, it has waited for them for a moment, without the
/// lock. Whoever does not call it again says so (unwant). Throws OutOfPages, and what Parking::want throws.
bool KvCache::all_there(std::unique_lock<Mutex>& lock, std::span<const std::int32_t> slots) {
  Parking& parking = *options_.parking;
  const Nanoseconds now = slots_->pool().clock().now();
  bool all = true, memory = true;
  for (const std::int32_t number : slots) {
    const auto slot = static_cast<std::uint32_t>(number);
    if (states_[slot] != SlotState::parked) continue;
    const Presence presence = parking.want(parked_.at(slot).unit, now, true);
    all &= presence == Presence::there;
    memory &= presence != Presence::no_memory;
  }
  if (!memory) refuse_to_wake(slots);
  if (all) return true;
  lock.unlock();
  parking.await();
  parking.waited(slots_->pool().clock().now() - now);
  lock.lock();
  return false;
}

/// Brings the parked ones among these back, and returns true; or has waited for them as all_there() does.
/// Throws SequenceLost and what Slots::adopt throws, too.
bool KvCache::bring_back(std::unique_lock<Mutex>& lock, std::span<const std::int32_t> slots) {
  return all_there(lock, slots) && resume(slots);
}

/// Nobody waits for those of them any more that are parked.
void KvCache::unwant(std::span<const std::int32_t> slots) {
  for (const std::int32_t number : slots) {
    const auto slot = static_cast<std::uint32_t>(number);
    if (slot < states_.size() && states_[slot] == SlotState::parked)
      options_.parking->unwant(parked_.at(slot).unit);
  }
}

/// There is no memory for all of these at once.
void KvCache::refuse_to_wake(std::span<const std::int32_t> slots) {
  Bytes asked;
  std::vector<std::uint32_t> fitting;
  for (const std::int32_t number : slots) {
    const auto slot = static_cast<std::uint32_t>(number);
    if (states_[slot] != SlotState::parked) {
      fitting.push_back(slot);
      continue;
    }
    if (options_.parking->there(parked_.at(slot).unit)) fitting.push_back(slot);
    asked += slots_->live({lengths_[slot]});
  }
  const Pool::Needs needs(slots_->pool());
  throw OutOfPages(needs.out_of_pages(asked, slots_->tenant()), std::move(fitting));
}

/// All of these are there. Returns whether they are awake; else somebody has taken pages meanwhile.
bool KvCache::resume(std::span<const std::int32_t> slots) {
  std::vector<SequenceLost::Loss> losses;
  try {
    for (const std::int32_t number : slots) {
      const auto slot = static_cast<std::uint32_t>(number);
      if (states_[slot] == SlotState::parked) resume(slot, losses);
    }
  } catch (...) {  // whoever steps the rest again hears of it then; of what is lost only now
    if (losses.empty()) throw;
  }
  if (!losses.empty()) throw SequenceLost(std::move(losses));
  return true;
}

/// The parked sequence, whose pages are kept, is awake. Where it has lost tokens it has only those before.
void KvCache::resume(std::uint32_t slot, std::vector<SequenceLost::Loss>& losses) {
  Parked& parked = parked_.at(slot);
  const Tokens length{lengths_[slot]};
  slots_->adopt(slot, length, fences_[slot]);  // maps its tail
  std::optional<Tokens> lost = options_.parking->take(parked.unit, length);
  Slots::Needs(*slots_).forget_use(slot);
  states_[slot] = SlotState::running;
  fences_[slot].clear();
  if (!lost) return;
  // What the window had before it is gone; and nothing may be written where others have the page, too.
  lost = slots_->has_windows() ? Tokens{} : slots_->before_shared(slot, *lost);
  options_.parking->cut(parked.unit, *lost);  // copies of what comes after that are of no use
  slots_->truncate(slot, *lost, {});
  index_.cut(slot, *lost);
  parked.lost += length - *lost;
  lengths_[slot] = previous_[slot] = static_cast<std::uint32_t>(lost->count);
  losses.push_back({slot, *lost});
}

/// The parked sequence in the slot ends. False where a tier still copies its pages: then the slot is free
/// when that is over.
bool KvCache::end_parked(std::uint32_t slot) {
  const auto parked = parked_.find(slot);
  const Tokens findable = tiers_know(slot, index_.findable(slot)) ? index_.findable(slot) : Tokens{};
  const Tokens held = saved(slot, findable, true);
  const bool over = held.count != 0 ? options_.parking->wind_up(parked->second.unit, held)
                                    : options_.parking->forget(parked->second.unit);
  if (!over) {
    states_[slot] = SlotState::leaving;
    leaving_.push_back(slot);
    return false;
  }
  if (held.count == 0) parked_.erase(parked);
  if (held < findable) index_.cut(slot, held);
  slots_->resume(slot, {lengths_[slot]});
  states_[slot] = SlotState::running;
  return true;
}

/// Waits for a moment, without the lock, for tiers that copy pages of slots which nobody is in. False where
/// it is too late, or there are none.
bool KvCache::await_tier(std::unique_lock<Mutex>& lock, Nanoseconds until) {
  const bool may_come = options_.parking && (!leaving_.empty() || cached_.count() != 0);
  if (!may_come || slots_->pool().clock().now() >= until) return false;
  lock.unlock();
  options_.parking->await();
  lock.lock();
  reap();
  return true;
}

/// Slots are free whose pages no tier copies any more.
void KvCache::reap() {
  for (const std::uint32_t slot : std::exchange(leaving_, {})) {
    states_[slot] = SlotState::parked;
    if (end_parked(slot)) close_slot(slot, {});
  }
}

}  // namespace vmm
