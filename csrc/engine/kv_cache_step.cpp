// One iteration. Where no page is missing or comes due, a step allocates nothing and calls no driver.
#include <algorithm>
#include <chrono>
#include <string>
#include <utility>

#include "base/error.h"
#include "engine/kv_cache.h"
#include "engine/parking.h"

namespace vmm {
namespace {

constexpr std::uint32_t steps_between_polls = 8;

/// Streams beyond the 31st share the last bit.
std::uint32_t bit_of(std::ptrdiff_t stream) {
  return std::uint32_t{1} << std::min<std::ptrdiff_t>(stream, 31);
}

std::string at(const char* argument, std::size_t i, std::int64_t value) {
  return std::string(argument) + "[" + std::to_string(i) + "] is " + std::to_string(value);
}

}  // namespace

/// Returns whether any of the sequences is parked.
bool KvCache::check(std::span<const std::int32_t> slots, std::span<const std::int32_t> lengths) {
  if (slots.size() != lengths.size())
    throw InvalidArgument("lengths has " + std::to_string(lengths.size()) + " elements; expected " +
                          std::to_string(slots.size()) + ", as slots");
  if (++steps_ == 0) {  // after four billion steps the numbers begin again
    std::ranges::fill(seen_, 0);
    ++steps_;
  }
  const auto most = static_cast<std::int64_t>(slots_->max_tokens().count);
  bool parked = false;
  for (std::size_t i = 0; i < slots.size(); ++i) {
    const auto slot = static_cast<std::uint32_t>(slots[i]);
    if (slot >= slots_->count() || !is_awake(slot)) {
      if (slot >= slots_->count() || !is_open(slot))
        throw InvalidArgument(at("slots", i, slots[i]) + "; expected one that is open");
      parked = true;
    }
    if (std::exchange(seen_[slot], steps_) == steps_)
      throw InvalidArgument(at("slots", i, slots[i]) + ", for the second time");
    if (lengths[i] < static_cast<std::int64_t>(lengths_[slot]))
      throw InvalidArgument(at("lengths", i, lengths[i]) + ", less than before: truncate it first");
    if (lengths[i] > most)
      throw InvalidArgument(at("lengths", i, lengths[i]) + "; max_tokens is " + std::to_string(most));
  }
  return parked;
}

/// 0 for a stream that this cache has never stepped.
std::uint32_t KvCache::known_bit(StreamHandle stream) const {
  const auto found = std::ranges::find(streams_, stream);
  return found == streams_.end() ? 0 : bit_of(found - streams_.begin());
}

std::uint32_t KvCache::users_bit(StreamHandle stream) {
  const auto found = std::ranges::find(streams_, stream);
  const std::uint32_t bit = bit_of(found - streams_.begin());
  if (found == streams_.end()) {
    streams_.push_back(stream);
    try {
      slots_->pool().epochs().join(stream);
    } catch (...) {
      streams_.pop_back();
      throw;
    }
  }
  return bit;
}

/// Returns the work that may still read slots that the streams `users`, a bit for each, have stepped. A step
/// says which slots its epoch uses. So work on the other streams of this cache does not read these slots,
/// unless it was marked.
Fence KvCache::readers(std::uint32_t users, StreamHandle stream) const {
  Epochs& epochs = slots_->pool().epochs();
  return epochs.fence([&, stream = epochs.named(stream)](StreamHandle each) {
    if (each == stream) return Work::all;
    const std::uint32_t bit = known_bit(each);
    if (bit == 0) return Work::outside_steps;
    return (users & bit) != 0 ? Work::all : Work::marked;
  });
}

/// Whether a step on `stream` would overwrite what work on other streams may still read of a slot, for the
/// sequence before.
bool KvCache::is_read(std::span<const std::int32_t> slots, StreamHandle stream) {
  if (fresh_ == 0) return false;
  const Epochs& epochs = slots_->pool().epochs();
  for (const std::int32_t slot : slots) {
    const auto number = static_cast<std::uint32_t>(slot);
    const Fence& fence = fences_[number];
    if (states_[number] != SlotState::fresh || epochs.complete(fence, stream)) continue;
    if (!epochs.waits_for_open_epoch(fence, stream)) return true;
    throw Error("slot " + std::to_string(slot) +
                " was closed in an epoch of another stream that is open still: end it there first");
  }
  return false;
}

void KvCache::map(std::span<const std::int32_t> slots, std::span<const std::int32_t> lengths,
                  StreamHandle stream) {
  Fence read;
  if (slots_->has_windows()) {
    std::uint32_t users = 0;
    for (const SlotLength& each : crossing_) users |= users_[each.slot];
    read = readers(users, stream);
  }
  try {
    slots_->advance(crossing_, read);
  } catch (const OutOfPages& error) {
    const Reclaiming& reclaiming = slots_->pool().reclaiming();
    std::int64_t left = reclaiming.obtainable(stream, slots_->tenant().id);
    const bool charged = reclaiming.charges_for_mapped();
    Bytes missing;
    std::vector<std::uint32_t> fitting;
    for (std::size_t i = 0; i < slots.size(); ++i) {
      const auto slot = static_cast<std::uint32_t>(slots[i]);
      const Tokens length{static_cast<std::uint64_t>(lengths[i])};
      const std::int64_t cost = slots_->cost(slot, length, stream);
      const Bytes missing_with = missing + slots_->missing(slot, length);
      // A slot that misses no page, or one that costs nothing, fits even where the budget is exceeded.
      const bool needs_some = missing_with.count != 0 || (charged && cost > 0);
      if (cost > left && needs_some) continue;
      left -= cost;
      missing = missing_with;
      fitting.push_back(slot);
    }
    throw OutOfPages(error, std::move(fitting));
  }
}

/// Maps what is missing. False where that fails, but parked sequences will give up memory.
bool KvCache::map_or_ask(std::span<const std::int32_t> slots, std::span<const std::int32_t> lengths,
                         StreamHandle stream, bool again) {
  // An attempt that fails lets go of what the pager has mapped ahead, and the pager maps that again. So the
  // next attempt waits until there may be enough.
  if (again) {
    const Bytes lacks = slots_->lacking(crossing_, stream);
    if (lacks.count != 0 && options_.parking->make_room(lacks)) return false;
  }
  try {
    map(slots, lengths, stream);
    return true;
  } catch (const OutOfPages& error) {
    if (!options_.parking) throw;
    if (options_.parking->make_room(error.figures().asked)) return false;
  }
  map(slots, lengths, stream);  // it may have come since we asked
  return true;
}

/// Maps what is missing. False where it has waited for memory, without the lock; then it is called `again`.
bool KvCache::map_or_wait(std::unique_lock<Mutex>& lock, std::span<const std::int32_t> slots,
                          std::span<const std::int32_t> lengths, StreamHandle stream, bool again) {
  crossing_.clear();
  const std::span<const Tokens> limits = slots_->limits();
  for (std::size_t i = 0; i < slots.size(); ++i) {
    const auto slot = static_cast<std::uint32_t>(slots[i]);
    const Tokens length{static_cast<std::uint64_t>(lengths[i])};
    if (length > limits[slot]) crossing_.push_back({slot, length, {lengths_[slot]}});
  }
  if (crossing_.empty() || map_or_ask(slots, lengths, stream, again)) return true;
  lock.unlock();
  options_.parking->await();
  lock.lock();
  return false;
}

void KvCache::step(std::span<const std::int32_t> slots, std::span<const std::int32_t> lengths,
                   StreamHandle stream) {
  Pool& pool = slots_->pool();
  stream = pool.epochs().named(stream);
  pool.fork_guard().require_parent("this cache");
  std::unique_lock lock(mutex_);
  // 1. If any of this throws, nothing has changed, but that the next epoch is open. The last epoch ends
  // without us from here on, so we can wait for what needs its end.
  bool parked = check(slots, lengths);
  if (steps_ % steps_between_polls == 0) pool.epochs().poll();
  pool.epochs().step(stream);
  pool.streams().epoch_closed();
  const std::uint32_t user = users_bit(stream);
  try {
    for (bool again = false;;) {
      while (parked) parked = !bring_back(lock, slots) || check(slots, lengths);
      if (is_read(slots, stream)) {
        lock.unlock();  // so that others can go on with their sequences
        pool.clock().sleep(std::chrono::microseconds(100));
        pool.epochs().poll();
        lock.lock();
      } else if (map_or_wait(lock, slots, lengths, stream, again)) {
        break;
      } else {
        again = true;
      }
      parked = check(slots, lengths);
    }
  } catch (...) {
    if (options_.parking) unwant(slots);
    throw;
  }
  // 2. Commit.
  std::uint64_t came = 0, longest = 0;
  for (std::size_t i = 0; i < slots.size(); ++i) {
    const auto slot = static_cast<std::uint32_t>(slots[i]);
    previous_[slot] = std::exchange(lengths_[slot], static_cast<std::uint32_t>(lengths[i]));
    users_[slot] |= user;
    if (fresh_ == 0 || states_[slot] != SlotState::fresh) continue;
    states_[slot] = SlotState::running;
    fences_[slot].clear();
    --fresh_;
    ++came;
    longest = std::max<std::uint64_t>(longest, lengths_[slot]);
  }
  if (came != 0) arrivals_.first_step(came, longest);
  if (slots_->touch() || came != 0) prepare();
  // 3. Announce what comes due.
  predictor_.iteration(pool.clock().now());
  if (const Nanoseconds delay = slots_->take_delay(); delay.count() != 0) predictor_.delay(delay);
  announce(slots);
}

/// As soon as one slot needs a new page within the horizon, this announces all slots that need one within
/// twice the horizon. So most steps do not wake the pager: that would cost more than all the rest of a step.
void KvCache::announce(std::span<const std::int32_t> slots) {
  const std::uint64_t ahead = options_.tokens_per_step.count * predictor_.horizon();
  const std::uint64_t most = slots_->max_tokens().count;
  const std::span<const Tokens> covered = slots_->covered();
  coming_.clear();
  bool due = false;
  for (const std::int32_t number : slots) {
    const auto slot = static_cast<std::uint32_t>(number);
    const std::uint64_t to = std::min(lengths_[slot] + 2 * ahead, most);
    if (to <= covered[slot].count) continue;
    coming_.push_back({slot, {to}});
    due |= std::min(lengths_[slot] + ahead, most) > covered[slot].count;
  }
  if (!due) return;
  slots_->announce(coming_);
  if (options_.parking) options_.parking->look();
}

void KvCache::end(StreamHandle stream) {
  slots_->pool().fork_guard().require_parent("this cache");
  std::lock_guard lock(mutex_);
  slots_->pool().epochs().end(stream);
  slots_->pool().streams().epoch_closed();
  if (options_.parking) options_.parking->look();
}

}  // namespace vmm
