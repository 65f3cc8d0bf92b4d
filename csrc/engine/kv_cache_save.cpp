// What somebody who writes a cache down must know of it: which sequences are parked, which tokens can be
// found, and where all of a parked sequence can be read for a while.
#include <string>
#include <utility>

#include "base/error.h"
#include "engine/kv_cache.h"
#include "engine/parking.h"

namespace vmm {

std::vector<std::uint32_t> KvCache::parked() const {
  const std::lock_guard lock(mutex_);
  std::vector<std::uint32_t> out;
  for (std::uint32_t slot = 0; slot < slots_->count(); ++slot)
    if (states_[slot] == SlotState::parked) out.push_back(slot);
  return out;
}

std::vector<KvCache::Known> KvCache::cached() const {
  const std::lock_guard lock(mutex_);
  std::vector<Known> out;
  for (const auto& [use, slot] : cached_.oldest_first())
    out.push_back({index_.salt(slot), index_.tokens(slot, index_.findable(slot))});
  return out;
}

KvCache::Known KvCache::known(std::uint32_t slot) const {
  const std::lock_guard lock(mutex_);
  require_open(slot);
  return {index_.salt(slot), index_.tokens(slot, index_.known(slot))};
}

Tokens KvCache::pin(std::uint32_t slot) {
  const auto number = static_cast<std::int32_t>(slot);
  const std::span slots(&number, 1);
  std::unique_lock lock(mutex_);
  try {
    do require_open(slot);
    while (!all_there(lock, slots));
  } catch (...) {
    unwant(slots);
    throw;
  }
  const Tokens length{lengths_[slot]};
  if (states_[slot] != SlotState::parked) return length;
  return saved(slot, length, true);
}

void KvCache::unpin(std::uint32_t slot) {
  const auto number = static_cast<std::int32_t>(slot);
  const std::lock_guard lock(mutex_);
  unwant(std::span(&number, 1));
}

}  // namespace vmm
