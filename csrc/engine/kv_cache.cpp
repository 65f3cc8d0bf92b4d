#include "engine/kv_cache.h"

#include <algorithm>
#include <string>
#include <utility>

#include "base/error.h"
#include "engine/pager.h"

namespace vmm {
namespace {

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
      arrivals_(std::max(options.first_tokens, options.tokens_per_step).count),
      lengths_(count),
      previous_(count),
      limits_(count),
      covered_(count),
      seen_(count),
      users_(count),
      places_(count) {
  if (slots_->max_tokens().count >= std::uint64_t{1} << 31)
    throw InvalidArgument("max_tokens: expected fewer than 2^31 tokens");
  for (Place& place : places_) place.fence = slots_->earlier_work();
  if (options_.first_tokens.count != 0) prepare();
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

Tokens KvCache::previous_length(std::uint32_t slot) const {
  std::lock_guard lock(mutex_);
  require_open(slot);
  return {previous_[slot]};
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

/// Of what closed slots held, memory that was short may have been taken since: looks before it believes.
std::uint32_t KvCache::best_true_fit(std::uint32_t prompt, StreamHandle stream) {
  for (;;) {
    const std::uint32_t slot = best_fit(prompt, stream);
    std::uint32_t& held = places_[slot].held;
    const std::uint32_t needed = std::min(held, prompt);
    const auto ready = static_cast<std::uint32_t>(slots_->ready(slot, {needed}).count);
    if (ready >= needed) return slot;
    held = ready;
  }
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
  stream = slots_->pool().epochs().named(stream);
  const std::uint32_t slot = best_true_fit(static_cast<std::uint32_t>(first.count), stream);
  Place& place = places_[slot];
  place.open = place.fresh = true;
  place.prepared = false;
  ++open_;
  ++fresh_;
  lengths_[slot] = previous_[slot] = limits_[slot] = users_[slot] = 0;
  slots_->take(slot, std::max(announced, first_tokens()));
  covered_[slot] = static_cast<std::uint32_t>(slots_->covered(slot).count);
  prepare();
  return slot;
}

/// Whoever comes next, unannounced, should find slots that hold the pages of their first steps. Those that
/// were chosen before stay so; then come the largest.
void KvCache::prepare() {
  const Tokens tokens{std::min(arrivals_.tokens(), slots_->max_tokens().count)};
  closed_.clear();
  for (std::uint32_t slot = 0; slot < places_.size(); ++slot)
    if (!places_[slot].open) closed_.push_back(slot);
  const auto wanted = std::min<std::size_t>(arrivals_.sequences(), closed_.size());
  std::ranges::partial_sort(
      closed_, closed_.begin() + static_cast<std::ptrdiff_t>(wanted), std::ranges::greater{},
      [&](std::uint32_t slot) { return std::pair(places_[slot].prepared, places_[slot].held); });
  for (std::size_t i = 0; i < closed_.size(); ++i) {
    Place& place = places_[closed_[i]];
    if (i >= wanted && !place.prepared) continue;
    place.prepared = i < wanted;
    const Tokens held = slots_->prepare(closed_[i], place.prepared ? tokens : Tokens{});
    place.held = std::max(place.held, static_cast<std::uint32_t>(held.count));
  }
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

void KvCache::truncate(std::uint32_t slot, Tokens to, StreamHandle stream) {
  slots_->pool().fork_guard().require_parent("this cache");
  std::lock_guard lock(mutex_);
  require_open(slot);
  if (to.count > lengths_[slot])
    throw InvalidArgument("tokens is " + std::to_string(to.count) + "; the sequence has " +
                          std::to_string(lengths_[slot]));
  if (slots_->has_windows() && to.count != 0 && to.count < previous_[slot])
    throw InvalidArgument("tokens is " + std::to_string(to.count) + "; layers with windows go back to " +
                          std::to_string(previous_[slot]) + ", as before the last step, or to 0");
  // Slots have not heard of what was written within the limit, which ends in the same page.
  if (to < slots_->frontier(slot)) slots_->truncate(slot, to, readers(users_[slot], stream));
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
    place.fence = readers(users_[slot], stream);
  }
  slots_->truncate(slot, {}, place.fence);
  if (std::exchange(place.fresh, false)) --fresh_;
  place.open = false;
  --open_;
  prepare();
}

}  // namespace vmm
