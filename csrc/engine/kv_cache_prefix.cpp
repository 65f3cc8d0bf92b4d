// Sequences that begin with tokens which others have computed.
//
// A sequence that ends leaves its tokens in its slot, which is *cached* then. One that begins with the same
// gets them in the cheapest way. Where that slot holds nothing else that could be found, the sequence
// *adopts* it as it lies. Else it has the tokens in a slot of its own, where their pages are mapped a second
// time (*aliased*) or copied.
#include <algorithm>
#include <chrono>
#include <string>
#include <utility>

#include "base/error.h"
#include "base/undo.h"
#include "engine/kv_cache.h"

namespace vmm {

KvCache::Opened KvCache::open_prompt(const Prompt& prompt, Tokens announced, StreamHandle stream) {
  Pool& pool = slots_->pool();
  pool.fork_guard().require_parent("this cache");
  const Tokens length{prompt.tokens.size()};
  slots_->check_length("tokens", length);
  slots_->check_length("announce", announced);
  stream = pool.epochs().named(stream);
  std::unique_lock lock(mutex_);
  reap();
  prefixes_.looked_up += length;
  const std::optional<Opened> found = length > block ? attach(lock, prompt, stream) : std::nullopt;
  const Opened opened = found ? *found : Opened{open_anew(lock, length, announced, stream), {}};
  try {
    if (!found) {
      index_.begin(opened.slot, prompt.salt);
    } else {
      prefixes_.found += opened.cached;
      const Tokens next = std::min(opened.cached + first_tokens(), slots_->max_tokens());
      if (is_awake(opened.slot)) slots_->announce(opened.slot, std::max(announced, next));
      prepare();
    }
  } catch (...) {  // nobody would ever close it
    undo_or_leak([&] {
      if (is_awake(opened.slot) || end_parked(opened.slot)) close_slot(opened.slot, stream);
    });
    throw;
  }
  return opened;
}

void KvCache::commit(std::uint32_t slot, std::span<const PrefixIndex::Token> tokens) {
  std::lock_guard lock(mutex_);
  require_open(slot);
  if (const Tokens known = index_.known(slot); known.count + tokens.size() > lengths_[slot])
    throw InvalidArgument("tokens has " + std::to_string(tokens.size()) + "; the sequence has " +
                          std::to_string(lengths_[slot]) + ", of which " + std::to_string(known.count) +
                          " were committed before");
  if (!index_.begun(slot)) index_.begin(slot, "");
  index_.append(slot, tokens);
}

PrefixStats KvCache::prefix_stats() const {
  std::lock_guard lock(mutex_);
  PrefixStats out = prefixes_;
  out.cached_slots = cached_.count();
  return out;
}

/// Waits a moment, without the lock, for a slot other than `but`. False where none comes by itself.
bool KvCache::await_a_slot(std::unique_lock<Mutex>& lock, std::uint32_t but, StreamHandle stream) {
  Pool& pool = slots_->pool();
  bool coming = false;
  for (std::uint32_t slot = 0; slot < slots_->count() && !coming; ++slot) {
    if (is_taken(slot) || slot == but || pool.epochs().waits_for_open_epoch(fences_[slot], stream)) continue;
    close_if_awaited(fences_[slot], stream);
    coming = true;
  }
  if (!coming) return false;
  lock.unlock();
  pool.clock().sleep(std::chrono::microseconds(100));
  lock.lock();
  return true;
}

/// A free slot that no work reads any more, for a sequence that has `length` tokens already. Their pages
/// would be in the way there, but those after them are what its first step needs: so one that is ready,
/// unless most of it would be in the way; or else the one with the fewest pages; or else, evicted, the cached
/// one that was used longest ago, but not `but`.
std::optional<std::uint32_t> KvCache::slot_to_fill(Tokens length, std::uint32_t but) {
  const Epochs& epochs = slots_->pool().epochs();
  const auto over = [&](std::uint32_t slot) { return epochs.complete(fences_[slot]); };
  if (length.count != 0)
    for (std::uint32_t slot : ready_)
      if (free_.tokens(slot) >= 2 * length.count && over(slot)) return slot;
  if (free_.count() != 0)
    if (const std::uint32_t slot = free_.best_fit(0, over); over(slot)) return slot;
  for (const auto& [use, slot] : cached_.oldest_first()) {
    if (slot == but || !over(slot) || !hold(slot)) continue;
    const std::uint32_t found = slot;
    evict(found);
    return found;
  }
  return std::nullopt;
}

/// A cached slot, which is held, is free from here on: nobody finds its tokens any more.
void KvCache::evict(std::uint32_t slot) {
  forget_unit(slot);
  slots_->let_go(slot, fences_[slot]);
  Slots::Needs(*slots_).forget_use(slot);
  cached_.take(slot);
  free_.put(slot, static_cast<std::uint32_t>(index_.findable(slot).count));
  index_.end(slot);
  states_[slot] = SlotState::free;
}

/// Of the cached slots for which `is_over(slot)`, the one that was used longest ago is evicted. False where
/// there is none, or tiers still copy their pages.
bool KvCache::evict_oldest(const std::function<bool(std::uint32_t)>& is_over) {
  for (const auto& [use, slot] : cached_.oldest_first()) {
    if (!is_over(slot) || !hold(slot)) continue;
    evict(std::uint32_t{slot});
    return true;
  }
  return false;
}

/// A sequence is to begin anew with `first` tokens. Where no slot is free for it, the cached slot that was
/// used longest ago is evicted; so it is where memory is so short that something must go for it, because its
/// pages are mapped, unless tiers would lose their copies. Throws InvalidArgument where no slot is free in
/// the end.
void KvCache::make_way(std::unique_lock<Mutex>& lock, Tokens first, StreamHandle stream) {
  const Epochs& epochs = slots_->pool().epochs();
  const auto over = [&](std::uint32_t slot) { return epochs.complete(fences_[slot], stream); };
  if (free_.count() != 0 && cached_.count() != 0 && !options_.parking) {
    std::uint32_t largest = no_slot;
    free_.from_largest([&](std::uint32_t slot) {
      largest = slot;
      return false;
    });
    if (free_.tokens(largest) >= first.count) return;
    if (slots_->not_kept(largest, first) <=
        slots_->pool().reclaiming().available(slots_->tenant(), Need::none))
      return;
    evict_oldest(over);
  }
  const auto any = [](std::uint32_t) { return true; };
  const Nanoseconds until = slots_->pool().clock().now() + patience;
  while (free_.count() == 0 && !evict_oldest(over) && !evict_oldest(any))
    if (!await_tier(lock, until))
      throw InvalidArgument("max_sequences is " + std::to_string(slots_->count()) + ": all of them are open");
}

}  // namespace vmm
