// Prefixes whose pages have left the device: what a sequence that has ended leaves in the tiers, for those
// that will begin with the same tokens.
//
// A cached slot has a spare unit (parking.h) then. Whoever begins with all that can be found there adopts the
// slot with its unit. For others, and for those who begin like a parked sequence, a slot of their own has the
// copies, too. Either way the new sequence is parked: it is brought back as if it had been idle.
#include <algorithm>
#include <new>
#include <utility>

#include "engine/kv_cache.h"
#include "engine/parking.h"

namespace vmm {

/// Whether tiers know all pages of the slot's first `length` tokens. They do not where a window of fewer
/// tokens reaches further back than that with which the slot was left, or parked.
bool KvCache::tiers_know(std::uint32_t slot, Tokens length) const {
  const auto parked = parked_.find(slot);
  return parked != parked_.end() && length <= parked->second.length &&
         slots_->reaches_no_further(length, parked->second.length);
}

/// The slot, whose sequence has ended, keeps its first `held` tokens for others; without tiers only for as
/// long as nobody needs the memory.
void KvCache::leave_to_tiers(std::uint32_t slot, Tokens held) {
  if (!options_.parking) return;
  try {
    Parked& left = unit_of(slot);
    options_.parking->leave(left.unit, slots_->pages_of(slot, held), fences_[slot]);
    left.length = held;
  } catch (const std::bad_alloc&) {  // then the tokens are found only as long as they are on the device
    forget_unit(slot);
    slots_->put_back(slot, held, fences_[slot], Need::none);
  }
}

/// The slot has a unit from now on.
KvCache::Parked& KvCache::unit_of(std::uint32_t slot) {
  const auto [parked, made] = parked_.try_emplace(slot);
  if (!made) return parked->second;
  try {
    parked->second.unit = options_.parking->add(slots_);
  } catch (...) {
    parked_.erase(parked);
    throw;
  }
  return parked->second;
}

/// Nothing of the slot is wanted from a tier any more. No tier copies its pages now.
void KvCache::forget_unit(std::uint32_t slot) {
  const auto parked = parked_.find(slot);
  if (parked == parked_.end()) return;
  options_.parking->forget(parked->second.unit);
  parked_.erase(parked);
}

/// Nobody is in the slot. Returns whether we may do with its pages what we like; else a tier copies them now.
bool KvCache::hold(std::uint32_t slot) {
  const auto parked = parked_.find(slot);
  return parked == parked_.end() || options_.parking->hold(parked->second.unit);
}

void KvCache::release(std::uint32_t slot) {
  const auto parked = parked_.find(slot);
  if (parked == parked_.end()) return;
  try {
    options_.parking->release(parked->second.unit, fences_[slot]);
  } catch (const std::bad_alloc&) {  // then nothing more is copied of it until it was held again
  }
}

/// A sequence with so many tokens, all of which are on the device, runs in the slot that was held.
void KvCache::take_unit(std::uint32_t slot, Tokens length) {
  const auto parked = parked_.find(slot);
  if (parked == parked_.end()) return;
  options_.parking->take(parked->second.unit, length);
  parked->second.since = length;
  parked->second.lost = {};
}

/// How many of the first tokens of the slot can be had again (see Parking::saved); with windows all or none.
Tokens KvCache::saved(std::uint32_t slot, Tokens length, bool on_device) {
  if (!tiers_know(slot, length)) return {};
  const Tokens good = options_.parking->saved(parked_.at(slot).unit, length, on_device);
  return good < length && slots_->has_windows() ? Tokens{} : good;
}

/// A parked sequence begins with the prefix; its slot is held if nobody is in it. Returns its slot. None
/// where no slot is free for it, or the prefix cannot be had any more.
std::optional<std::uint32_t> KvCache::restore(const Prefix& prefix) {
  Parking& parking = *options_.parking;
  const UnitId source = parked_.at(prefix.slot).unit;
  std::uint32_t slot = prefix.slot;
  if (prefix.whole) {
    if (!parking.adopt(source, prefix.length)) {
      release(slot);
      return std::nullopt;
    }
    cached_.take(slot);
    index_.cut(slot, prefix.length);
  } else {
    const std::optional<std::uint32_t> own = slot_to_fill({}, prefix.slot);
    const bool made = own && copies_of(prefix, *own);
    if (!is_open(prefix.slot)) release(prefix.slot);
    if (!made) return std::nullopt;
    slot = *own;
  }
  Parked& parked = parked_.at(slot);
  parked.since = parked.length = prefix.length;
  parked.lost = {};
  states_[slot] = SlotState::parked;
  lengths_[slot] = previous_[slot] = static_cast<std::uint32_t>(prefix.length.count);
  ++prefixes_.restored;
  try {
    parking.want(parked.unit, slots_->pool().clock().now(), false);
  } catch (const std::bad_alloc&) {  // then whoever steps it waits longer
  }
  return slot;
}

/// The slot, which is free, has the copies of the prefix. False where they cannot be had any more.
bool KvCache::copies_of(const Prefix& prefix, std::uint32_t slot) {
  Parking& parking = *options_.parking;
  bool shared = false;
  try {
    const UnitId unit = unit_of(slot).unit;
    Slots::Needs(*slots_).take(slot, {});
    index_.copy(prefix.slot, slot, prefix.length);
    shared = parking.share_copies(parked_.at(prefix.slot).unit, prefix.length, unit,
                                  slots_->pages_of(slot, prefix.length));
  } catch (...) {
    index_.end(slot);
    forget_unit(slot);
    throw;
  }
  if (!shared) {
    index_.end(slot);
    forget_unit(slot);
    return false;
  }
  free_.take(slot);
  if (states_[slot] == SlotState::ready) std::erase(ready_, slot);
  users_[slot] = copiers_[slot] = 0;
  return true;
}

}  // namespace vmm
