// Sequences that begin with the tokens of another one, and share its pages.
#include <algorithm>
#include <chrono>
#include <ranges>
#include <string>
#include <utility>

#include "base/error.h"
#include "base/undo.h"
#include "engine/kv_cache.h"

namespace vmm {

/// Whether work on other streams than `stream`, which stepped the slot, is over. While it is not, the pages
/// that it writes would be shared, and copied, too early.
bool KvCache::over_elsewhere(std::uint32_t slot, StreamHandle stream) const {
  Fence elsewhere = readers(users_[slot], stream);
  std::erase_if(elsewhere, [&](const StreamEpoch& each) {
    return each.stream == stream || (users_[slot] & known_bit(each.stream)) == 0;
  });
  return slots_->pool().epochs().complete(elsewhere);
}

/// Work on the stream copies the slot's tokens.
void KvCache::note_copier(std::uint32_t slot, StreamHandle stream) {
  const std::uint32_t bit = users_bit(stream);
  if ((users_[slot] & bit) == 0) copiers_[slot] |= bit;
  users_[slot] |= bit;
}

/// Throws Error where a stream that has not stepped the slot still copies its tokens: those that take their
/// place would be copied instead.
void KvCache::require_copied(std::uint32_t slot) {
  if (copiers_[slot] == 0) return;
  Epochs& epochs = slots_->pool().epochs();
  epochs.poll();
  Fence copies = epochs.fence(
      [&](StreamHandle each) { return (copiers_[slot] & known_bit(each)) != 0 ? Work::all : Work::marked; });
  std::erase_if(copies,
                [&](const StreamEpoch& each) { return (copiers_[slot] & known_bit(each.stream)) == 0; });
  if (!epochs.complete(copies))
    throw Error("slot " + std::to_string(slot) +
                " is copied on another stream, and that work is not over: call end() there and wait");
  copiers_[slot] = 0;
}

void KvCache::require_over_elsewhere(std::uint32_t slot, StreamHandle stream) const {
  if (!over_elsewhere(slot, stream))
    throw Error("slot " + std::to_string(slot) +
                " was stepped on another stream, whose work is not over, and it would be copied too early: "
                "do this on that stream, or call end() there and wait");
}

/// How many free slots no work reads any more. What lies in a slot for a fork must be unmapped, so its last
/// work must be over, and not only be ordered before ours.
std::uint32_t KvCache::slots_for_fork(StreamHandle stream, std::uint32_t& coming) const {
  const Epochs& epochs = slots_->pool().epochs();
  std::uint32_t over = 0;
  coming = 0;
  for (std::uint32_t slot = 0; slot < slots_->count(); ++slot) {
    if (is_taken(slot)) continue;
    if (epochs.complete(fences_[slot]))
      ++over;
    else
      coming += !epochs.waits_for_open_epoch(fences_[slot], stream);
  }
  return over;
}

/// Begins the stream's next epoch where the fence waits for the end of this one.
void KvCache::close_if_awaited(const Fence& fence, StreamHandle stream) {
  Pool& pool = slots_->pool();
  if (!pool.epochs().waits_for_open_epoch(fence) || pool.epochs().waits_for_open_epoch(fence, stream)) return;
  pool.epochs().step(stream);
  pool.streams().epoch_closed();
}

/// Waits, without the lock, until so many slots are free and no work reads them. Throws as fork().
void KvCache::await_slots_for_fork(std::unique_lock<Mutex>& lock, std::uint32_t slot, std::uint32_t count,
                                   StreamHandle stream) {
  Pool& pool = slots_->pool();
  for (;;) {
    require_open(slot);
    if (not_open() < count)
      throw InvalidArgument("n is " + std::to_string(count) + "; of max_sequences, which is " +
                            std::to_string(slots_->count()) + ", only " + std::to_string(not_open()) +
                            " are not open");
    pool.epochs().poll();
    std::uint32_t coming;
    const std::uint32_t over = slots_for_fork(stream, coming);
    const auto is_over = [&](std::uint32_t each) { return pool.epochs().complete(fences_[each]); };
    const auto free = [&](std::uint32_t each) {
      return !is_cached(each) && !is_taken(each) && is_over(each);
    };
    const auto enough = [&] {
      return std::ranges::count_if(std::views::iota(0U, slots_->count()), free) >= count;
    };
    if (over >= count) {
      while (!enough() && evict_oldest(is_over)) {
      }
      if (enough()) return;  // else a tier copies the pages of cached ones
    }
    if (over + coming < count)
      throw Error(
          "free slots were closed in an epoch of another stream that is open still: end it there first");
    for (std::uint32_t each = 0; each < slots_->count(); ++each)
      if (!is_taken(each)) close_if_awaited(fences_[each], stream);
    lock.unlock();
    pool.clock().sleep(std::chrono::microseconds(100));
    lock.lock();
  }
}

std::vector<std::uint32_t> KvCache::fork(std::uint32_t slot, std::uint32_t count, StreamHandle stream) {
  Pool& pool = slots_->pool();
  pool.fork_guard().require_parent("this cache");
  stream = pool.epochs().named(stream);
  std::unique_lock lock(mutex_);
  require_open(slot);
  reap();
  do {
    wake(lock, slot);
    await_slots_for_fork(lock, slot, count, stream);
  } while (!is_awake(slot));
  require_over_elsewhere(slot, stream);
  note_copier(slot, stream);
  std::vector<std::uint32_t> out;
  out.reserve(count);
  try {
    while (out.size() < count) out.push_back(fork_one(slot, stream));
    pool.epochs().cover(stream);
  } catch (...) {
    undo_or_leak([&] { slots_->fence_after(stream); });  // nobody gets these slots before the copies are over
    for (std::uint32_t each : out) undo_or_leak([&] { close_slot(each, stream); });
    throw;
  }
  return out;
}

std::uint32_t KvCache::fork_one(std::uint32_t slot, StreamHandle stream) {
  const std::uint32_t child = slot_to_fill().value();
  Slots::Needs(*slots_).take(child, {});
  free_.set_tokens(child, 0);
  try {
    slots_->fork({slot, {lengths_[slot]}, slots_->passed(slot)}, child, stream);
    index_.copy(slot, child, {lengths_[slot]});
  } catch (...) {
    fences_[child] = slots_->fence_after(stream);  // copies into it may be under way
    slots_->truncate(child, {}, fences_[child]);   // where only the last call failed
    throw;
  }
  free_.take(child);
  if (states_[child] == SlotState::ready) std::erase(ready_, child);
  states_[child] = states_[slot];
  fresh_ += states_[slot] == SlotState::fresh;
  lengths_[child] = lengths_[slot];
  previous_[child] = previous_[slot];
  users_[child] = users_[slot];
  copiers_[child] = 0;
  fences_[child].clear();
  return child;
}

/// False when the driver failed and the sequence's tokens are lost.
bool KvCache::make_private(std::uint32_t slot, Tokens to, StreamHandle stream) {
  Epochs& epochs = slots_->pool().epochs();
  stream = epochs.named(stream);
  epochs.poll();
  require_over_elsewhere(slot, stream);
  users_[slot] |= users_bit(stream);  // the copies read it there
  if (epochs.waits_for_open_epoch(readers(users_[slot], stream), stream))
    throw Error("slot " + std::to_string(slot) +
                " shares a page that must be copied, and an open epoch of another stream may read it: end it "
                "there first");
  const auto readers_now = [&] {
    epochs.cover(stream);
    Fence fence = readers(users_[slot], stream);
    close_if_awaited(fence, stream);
    return fence;
  };
  return slots_->make_private(slot, to, readers_now, stream);
}

}  // namespace vmm
