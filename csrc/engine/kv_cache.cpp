#include "engine/kv_cache.h"

#include <algorithm>
#include <chrono>
#include <string>
#include <thread>
#include <utility>

#include "base/error.h"
#include "engine/pager.h"

namespace vmm {
namespace {

constexpr std::uint32_t steps_between_polls = 8;

std::string at(const char* argument, std::size_t i, std::int64_t value) {
  return std::string(argument) + "[" + std::to_string(i) + "] is " + std::to_string(value);
}

SlotsOptions slots_options(const KvCacheOptions& options) {
  return {.tail = options.tail,
          .max_tokens = options.max_tokens,
          .look_ahead = false,
          .write_intent = false};  // a step may fail after us, and what it was to write is a tail later
}

}  // namespace

KvCache::KvCache(std::shared_ptr<Pager> pager, std::vector<SlotPart> parts, std::uint32_t count,
                 const KvCacheOptions& options)
    : slots_(Slots::make(std::move(pager), std::move(parts), count, slots_options(options))),
      options_(options),
      lengths_(count),
      limits_(count),
      covered_(count),
      seen_(count),
      users_(count),
      places_(count) {
  if (slots_->max_tokens().count >= std::uint64_t{1} << 31)
    throw InvalidArgument("max_tokens: expected fewer than 2^31 tokens");
  for (Place& place : places_) place.fence = slots_->earlier_work();
}

KvCache::~KvCache() {
  Pool& pool = slots_->pool();
  if (pool.fork_guard().in_child()) return;
  for (StreamHandle stream : streams_) {
    try {
      pool.epochs().leave(stream);
    } catch (const Error& error) {  // the epoch stays open: what it may read is not used again
      pool.log().write(LogLevel::warning, error.what());
    }
  }
}

void KvCache::require_open(std::uint32_t slot) const {
  if (slot >= places_.size() || !places_[slot].open)
    throw InvalidArgument("slot is " + std::to_string(slot) + "; expected one that is open");
}

Tokens KvCache::length(std::uint32_t slot) const {
  std::lock_guard lock(mutex_);
  require_open(slot);
  return {lengths_[slot]};
}

Tokens KvCache::computed(std::uint32_t slot) const {
  std::lock_guard lock(mutex_);
  require_open(slot);
  return slots_->computed(slot);
}

std::uint32_t KvCache::open_slots() const {
  std::lock_guard lock(mutex_);
  return open_;
}

Bytes KvCache::live() const {
  std::lock_guard lock(mutex_);
  Bytes sum;
  for (std::size_t slot = 0; slot < places_.size(); ++slot)
    if (places_[slot].open) sum += slots_->live({lengths_[slot]});
  return sum;
}

Bytes KvCache::held() const {
  std::lock_guard lock(mutex_);
  Bytes sum;
  for (std::uint32_t slot = 0; slot < places_.size(); ++slot)
    if (places_[slot].open) sum += slots_->held(slot);
  return sum;
}

std::uint64_t KvCache::horizon() const {
  std::lock_guard lock(mutex_);
  return predictor_.horizon();
}

/// The smallest that holds the prompt, or else the largest: of those whose last work comes before `stream`'s
/// next, if there is one.
std::uint32_t KvCache::best_fit(std::uint32_t prompt, StreamHandle stream) {
  auto better = [&](const Place& a, const Place& b) {
    const bool fits = a.held >= prompt;
    if (fits != (b.held >= prompt)) return fits;
    return fits ? a.held < b.held : a.held > b.held;
  };
  const Place* best = nullptr;
  bool best_ready = false;
  for (const Place& place : places_) {
    if (place.open || (best_ready && !better(place, *best))) continue;
    const bool ready = slots_->pool().epochs().complete(place.fence, stream);
    if (best == nullptr || (ready && !best_ready) || (ready == best_ready && better(place, *best))) {
      best = &place;
      best_ready = ready;
    }
  }
  return static_cast<std::uint32_t>(best - places_.data());
}

std::uint32_t KvCache::open(Tokens prompt, Tokens announced, StreamHandle stream) {
  slots_->pool().fork_guard().require_parent("this cache");
  slots_->check_length("prompt_tokens", prompt);
  slots_->check_length("announce", announced);
  std::lock_guard lock(mutex_);
  if (open_ == places_.size())
    throw InvalidArgument("max_sequences is " + std::to_string(places_.size()) + ": all of them are open");
  slots_->pool().epochs().poll();
  const Tokens first = std::max(prompt, first_tokens());
  const std::uint32_t slot = best_fit(static_cast<std::uint32_t>(first.count), stream);
  Place& place = places_[slot];
  place.open = place.fresh = true;
  ++open_;
  ++fresh_;
  lengths_[slot] = limits_[slot] = covered_[slot] = users_[slot] = 0;
  if (announced.count != 0) announce(slot, static_cast<std::uint32_t>(announced.count));
  prepare_another();
  return slot;
}

/// The next arrival finds a slot with its first page.
void KvCache::prepare_another() {
  const auto empty = std::ranges::find_if(places_, [](const Place& p) { return !p.open && p.held == 0; });
  const bool prepared = std::ranges::any_of(places_, [](const Place& p) { return !p.open && p.held != 0; });
  if (prepared || empty == places_.end()) return;
  const auto slot = static_cast<std::uint32_t>(empty - places_.begin());
  slots_->announce(slot, first_tokens());
  empty->held = static_cast<std::uint32_t>(slots_->covered(slot).count);
}

void KvCache::check(std::span<const std::int32_t> slots, std::span<const std::int32_t> lengths) {
  if (slots.size() != lengths.size())
    throw InvalidArgument("lengths has " + std::to_string(lengths.size()) + " elements; expected " +
                          std::to_string(slots.size()) + ", as slots");
  if (++steps_ == 0) {  // after four billion steps the numbers come round again
    std::ranges::fill(seen_, 0);
    ++steps_;
  }
  const auto most = static_cast<std::int64_t>(slots_->max_tokens().count);
  for (std::size_t i = 0; i < slots.size(); ++i) {
    const auto slot = static_cast<std::uint32_t>(slots[i]);
    if (slot >= places_.size() || !places_[slot].open)
      throw InvalidArgument(at("slots", i, slots[i]) + "; expected one that is open");
    if (std::exchange(seen_[slot], steps_) == steps_)
      throw InvalidArgument(at("slots", i, slots[i]) + ", for the second time");
    if (lengths[i] < static_cast<std::int64_t>(lengths_[slot]))
      throw InvalidArgument(at("lengths", i, lengths[i]) + ", less than before: truncate it first");
    if (lengths[i] > most)
      throw InvalidArgument(at("lengths", i, lengths[i]) + "; max_tokens is " + std::to_string(most));
  }
}

/// Streams beyond the 31st share the last bit.
std::uint32_t KvCache::users_bit(StreamHandle stream) {
  const auto found = std::ranges::find(streams_, stream);
  const auto i = static_cast<std::size_t>(found - streams_.begin());
  if (found == streams_.end()) {
    streams_.push_back(stream);
    slots_->pool().epochs().join(stream);
  }
  return std::uint32_t{1} << std::min<std::size_t>(i, 31);
}

/// The work that may still read a slot: a step says which slots its epoch uses.
Fence KvCache::readers(std::uint32_t slot, StreamHandle stream) {
  Fence fence = slots_->pool().epochs().fence();
  std::erase_if(fence, [&](const StreamEpoch& entry) {
    if (entry.stream == stream || std::ranges::find(streams_, entry.stream) == streams_.end()) return false;
    return (users_[slot] & users_bit(entry.stream)) == 0;
  });
  return fence;
}

/// Whether a step on `stream` would overwrite what work on other streams may still read of a slot, for the
/// sequence before.
bool KvCache::is_read(std::span<const std::int32_t> slots, StreamHandle stream) {
  if (fresh_ == 0) return false;
  const Epochs& epochs = slots_->pool().epochs();
  for (const std::int32_t slot : slots) {
    const Place& place = places_[static_cast<std::uint32_t>(slot)];
    if (!place.fresh || epochs.complete(place.fence, stream)) continue;
    if (!epochs.waits_for_open_epoch(place.fence, stream)) return true;
    throw Error("slot " + std::to_string(slot) +
                " was closed in an epoch of another stream that is open still: end it there first");
  }
  return false;
}

void KvCache::map(std::span<const std::int32_t> slots, std::span<const std::int32_t> lengths,
                  StreamHandle stream) {
  try {
    slots_->advance(crossing_);
  } catch (const OutOfPages& error) {
    std::int64_t left = slots_->pool().obtainable(stream);
    Bytes missing;
    std::vector<std::uint32_t> fitting;
    for (std::size_t i = 0; i < slots.size(); ++i) {
      const auto slot = static_cast<std::uint32_t>(slots[i]);
      const Tokens length{static_cast<std::uint64_t>(lengths[i])};
      const std::int64_t cost = slots_->cost(slot, length, stream);
      const Bytes missing_with = missing + slots_->missing(slot, length);
      // Even a budget that is exceeded has room for what is all there.
      if (cost > left && missing_with.count != 0) continue;
      left -= cost;
      missing = missing_with;
      fitting.push_back(slot);
    }
    throw OutOfPages(error, std::move(fitting));
  }
}

void KvCache::step(std::span<const std::int32_t> slots, std::span<const std::int32_t> lengths,
                   StreamHandle stream) {
  Pool& pool = slots_->pool();
  pool.fork_guard().require_parent("this cache");
  std::unique_lock lock(mutex_);
  // 1. Nothing has changed if any of this throws, but that the next epoch is open: the last one ends by
  // itself now, so what waits for it can be waited for.
  check(slots, lengths);
  if (steps_ % steps_between_polls == 0) pool.epochs().poll();
  pool.epochs().step(stream);
  const std::uint32_t user = users_bit(stream);
  while (is_read(slots, stream)) {
    lock.unlock();  // others go on with their sequences meanwhile
    std::this_thread::sleep_for(std::chrono::microseconds(100));
    pool.epochs().poll();
    lock.lock();
    check(slots, lengths);
  }
  crossing_.clear();
  for (std::size_t i = 0; i < slots.size(); ++i) {
    const auto slot = static_cast<std::uint32_t>(slots[i]);
    const auto length = static_cast<std::uint32_t>(lengths[i]);
    if (length > limits_[slot]) crossing_.push_back({slot, {length}, {lengths_[slot]}});
  }
  if (!crossing_.empty()) map(slots, lengths, stream);
  // 2. Commit.
  for (const SlotLength& each : crossing_)
    limits_[each.slot] = static_cast<std::uint32_t>(slots_->limit(each.slot).count);
  for (std::size_t i = 0; i < slots.size(); ++i) {
    const auto slot = static_cast<std::uint32_t>(slots[i]);
    lengths_[slot] = static_cast<std::uint32_t>(lengths[i]);
    users_[slot] |= user;
    if (fresh_ == 0 || !places_[slot].fresh) continue;
    places_[slot].fresh = false;
    places_[slot].fence.clear();
    --fresh_;
  }
  // 3. What comes due.
  predictor_.iteration(pool.clock().now());
  if (const Nanoseconds delay = slots_->take_delay(); delay.count() != 0) predictor_.delay(delay);
  announce(slots);
}

/// Where one slot is within the horizon of a new page, all that are within twice the horizon are announced:
/// so most steps wake nobody, which costs more than everything else they do.
void KvCache::announce(std::span<const std::int32_t> slots) {
  const std::uint64_t ahead = options_.tokens_per_step.count * predictor_.horizon();
  const std::uint64_t most = slots_->max_tokens().count;
  coming_.clear();
  bool due = false;
  for (const std::int32_t number : slots) {
    const auto slot = static_cast<std::uint32_t>(number);
    const std::uint64_t to = std::min(lengths_[slot] + 2 * ahead, most);
    if (to <= covered_[slot]) continue;
    coming_.push_back({slot, {to}});
    due |= std::min(lengths_[slot] + ahead, most) > covered_[slot];
  }
  if (!due) return;
  slots_->announce(coming_);
  for (const SlotLength& each : coming_)
    covered_[each.slot] = static_cast<std::uint32_t>(slots_->covered(each.slot).count);
}

void KvCache::announce_tokens(std::uint32_t slot, Tokens to) {
  std::lock_guard lock(mutex_);
  require_open(slot);
  slots_->check_length("tokens", to);
  announce(slot, static_cast<std::uint32_t>(to.count));
}

void KvCache::announce(std::uint32_t slot, std::uint32_t to) {
  slots_->announce(slot, {to});
  covered_[slot] = static_cast<std::uint32_t>(slots_->covered(slot).count);
}

void KvCache::end(StreamHandle stream) {
  slots_->pool().fork_guard().require_parent("this cache");
  std::lock_guard lock(mutex_);
  slots_->pool().epochs().end(stream);
}

void KvCache::truncate(std::uint32_t slot, Tokens to) {
  slots_->pool().fork_guard().require_parent("this cache");
  std::lock_guard lock(mutex_);
  require_open(slot);
  if (to.count > lengths_[slot])
    throw InvalidArgument("tokens is " + std::to_string(to.count) + "; the sequence has " +
                          std::to_string(lengths_[slot]));
  // Slots have not heard of what was written within the limit, which ends in the same page.
  if (to < slots_->frontier(slot)) slots_->truncate(slot, to);
  lengths_[slot] = static_cast<std::uint32_t>(to.count);
  limits_[slot] = static_cast<std::uint32_t>(slots_->limit(slot).count);
  covered_[slot] = 0;  // to be announced again
}

void KvCache::close(std::uint32_t slot, StreamHandle stream) {
  slots_->pool().fork_guard().require_parent("this cache");
  std::lock_guard lock(mutex_);
  require_open(slot);
  Place& place = places_[slot];
  if (!place.fresh) {
    place.held = limits_[slot];
    place.fence = readers(slot, stream);
  }
  slots_->truncate(slot, {});
  if (std::exchange(place.fresh, false)) --fresh_;
  place.open = false;
  --open_;
}

}  // namespace vmm
