#include "engine/kv_cache.h"

#include <algorithm>
#include <string>
#include <utility>

#include "base/error.h"
#include "base/undo.h"
#include "engine/pager.h"
#include "engine/parking.h"

namespace vmm {

KvCache::KvCache(std::shared_ptr<Pager> pager, std::vector<SlotPart> parts, std::uint32_t count,
                 const KvCacheOptions& options)
    : slots_(Slots::make(std::move(pager), std::move(parts), count,
                         {.tail = options.tail,
                          .max_tokens = options.max_tokens,
                          .look_ahead = false,
                          // A step may fail after us. Then what it was to write lies in the tail, which
                          // kernels may read.
                          .write_intent = false})),
      options_(options),
      arrivals_(std::max(options.first_tokens, options.tokens_per_step).count),
      free_(count),
      cached_(count),
      index_(count),
      states_(count, SlotState::free),
      lengths_(count),
      previous_(count),
      seen_(count),
      users_(count),
      copiers_(count),
      fences_(count, slots_->earlier_work()) {
  if (slots_->max_tokens().count >= std::uint64_t{1} << 31)
    throw InvalidArgument("max_tokens: expected fewer than 2^31 tokens");
  ready_.reserve(count);
  if (options_.parking) options_.parking->serve(slots_->page_bytes());
  if (options_.first_tokens.count != 0) prepare();
}

KvCache::~KvCache() {
  Pool& pool = slots_->pool();
  if (pool.fork_guard().in_child()) return;
  for (const auto& [slot, parked] : parked_)  // what a tier still copies lives on without us
    undo_or_leak([&] { options_.parking->forget(parked.unit); });
  for (StreamHandle stream : streams_) {
    try {
      pool.epochs().leave(stream);
    } catch (const Error& error) {  // the epoch stays open, and nobody gets what it may read
      pool.log().write(LogLevel::warning, error.what());
    }
  }
}

void KvCache::require_open(std::uint32_t slot) const {
  if (slot >= slots_->count() || !is_open(slot))
    throw InvalidArgument("slot is " + std::to_string(slot) + "; expected one that is open");
}

void KvCache::require_awake(std::uint32_t slot) const {
  require_open(slot);
  if (!is_awake(slot))
    throw InvalidArgument("slot is " + std::to_string(slot) + ", whose sequence is parked; step it first");
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
  return slots_->count() - not_open() - static_cast<std::uint32_t>(leaving_.size());
}

std::uint32_t KvCache::leaving_slots() const {
  std::lock_guard lock(mutex_);
  return static_cast<std::uint32_t>(leaving_.size());
}

Bytes KvCache::live() const {
  std::lock_guard lock(mutex_);
  Bytes sum;
  for (std::uint32_t slot = 0; slot < slots_->count(); ++slot)
    if (is_open(slot)) sum += slots_->live({lengths_[slot]});
  return sum;
}

Bytes KvCache::held() const {
  std::lock_guard lock(mutex_);
  Bytes sum;
  for (std::uint32_t slot = 0; slot < slots_->count(); ++slot)
    if (is_open(slot)) sum += slots_->held(slot);
  return sum;
}

std::uint64_t KvCache::horizon() const {
  std::lock_guard lock(mutex_);
  return predictor_.horizon();
}

/// Returns the free slot whose pages fit the prompt best. A slot whose last work is over when `stream`'s next
/// work begins comes first. Where memory was short, a closed slot may have lost pages, so this looks at the
/// pages of the slot that it chooses.
std::uint32_t KvCache::choose(Slots::Needs& needs, std::uint32_t prompt, StreamHandle stream) {
  const Epochs& epochs = slots_->pool().epochs();
  for (;;) {
    const std::uint32_t slot =
        free_.best_fit(prompt, [&](std::uint32_t each) { return epochs.complete(fences_[each], stream); });
    const std::uint32_t needed = std::min(free_.tokens(slot), prompt);
    const auto ready = static_cast<std::uint32_t>(needs.ready(slot, {needed}).count);
    if (ready >= needed) return slot;
    free_.set_tokens(slot, ready);
  }
}

std::uint32_t KvCache::open(Tokens prompt, Tokens announced, StreamHandle stream) {
  slots_->pool().fork_guard().require_parent("this cache");
  slots_->check_length("prompt_tokens", prompt);
  slots_->check_length("announce", announced);
  std::unique_lock lock(mutex_);
  reap();
  return open_anew(lock, prompt, announced, stream);
}

/// The caller holds the lock.
std::uint32_t KvCache::open_anew(std::unique_lock<Mutex>& lock, Tokens prompt, Tokens announced,
                                 StreamHandle stream) {
  slots_->pool().epochs().poll();
  const Tokens first = std::max(prompt, first_tokens());
  announced = std::max(announced, first_tokens());
  std::uint32_t slot;
  make_way(lock, first, stream);
  {
    Slots::Needs needs(*slots_);
    slot = choose(needs, static_cast<std::uint32_t>(first.count), stream);
    needs.take(slot, announced);
    free_.take(slot);
    if (states_[slot] == SlotState::ready) std::erase(ready_, slot);
    states_[slot] = SlotState::fresh;
    ++fresh_;
    lengths_[slot] = previous_[slot] = users_[slot] = copiers_[slot] = 0;
  }
  try {
    prepare();
    slots_->announce(slot, announced);
  } catch (...) {  // nobody would ever close it
    undo_or_leak([&] { close_slot(slot, stream); });
    throw;
  }
  return slot;
}

void KvCache::prepare() {
  Slots::Needs needs(*slots_);
  prepare(needs);
}

/// Sequences that nobody has announced should find slots that hold the pages of their first steps. This keeps
/// the slots that are ready, as many as are wanted, and adds the largest of the others.
void KvCache::prepare(Slots::Needs& needs) {
  const Tokens tokens{std::min(arrivals_.tokens(), slots_->max_tokens().count)};
  const auto wanted = std::min<std::size_t>(arrivals_.sequences(), free_.count());
  while (ready_.size() > wanted) {
    const auto least =
        std::ranges::min_element(ready_, {}, [&](std::uint32_t slot) { return free_.tokens(slot); });
    needs.prepare(*least, {});
    states_[*least] = SlotState::free;
    ready_.erase(least);
  }
  if (ready_.size() < wanted)
    free_.from_largest([&](std::uint32_t slot) {
      if (states_[slot] == SlotState::ready) return true;
      states_[slot] = SlotState::ready;
      ready_.push_back(slot);
      return ready_.size() < wanted;
    });
  for (std::uint32_t slot : ready_) {
    const auto will_hold = static_cast<std::uint32_t>(needs.prepare(slot, tokens).count);
    if (will_hold > free_.tokens(slot)) free_.set_tokens(slot, will_hold);
  }
}

void KvCache::announce_tokens(std::uint32_t slot, Tokens to) {
  std::lock_guard lock(mutex_);
  require_awake(slot);
  slots_->check_length("tokens", to);
  slots_->announce(slot, to);
}

void KvCache::truncate(std::uint32_t slot, Tokens to, StreamHandle stream) {
  slots_->pool().fork_guard().require_parent("this cache");
  std::unique_lock lock(mutex_);
  require_open(slot);
  if (to.count > lengths_[slot])
    throw InvalidArgument("tokens is " + std::to_string(to.count) + "; the sequence has " +
                          std::to_string(lengths_[slot]));
  if (slots_->has_windows() && to.count != 0 && to.count < previous_[slot])
    throw InvalidArgument("tokens is " + std::to_string(to.count) + "; layers with windows go back to " +
                          std::to_string(previous_[slot]) + ", as before the last step, or to 0");
  wake(lock, slot);
  if (to.count < lengths_[slot]) require_copied(slot);
  const bool lost =
      to.count < lengths_[slot] && slots_->shares_pages_beyond(slot, to) && !make_private(slot, to, stream);
  if (lost) to = {};
  // Tokens beyond kept() lie in the last page that is kept, so there is no page to give up for them, and what
  // was announced stays announced.
  if (to < slots_->kept(slot)) slots_->truncate(slot, to, readers(users_[slot], stream));
  lengths_[slot] = static_cast<std::uint32_t>(to.count);
  index_.cut(slot, to);
  if (const auto parked = parked_.find(slot); parked != parked_.end())
    options_.parking->cut(parked->second.unit, to);
  if (lost)
    throw DriverError("the driver would not map the copy of a shared page: the sequence in slot " +
                      std::to_string(slot) + " has lost its tokens");
}

void KvCache::close(std::uint32_t slot, StreamHandle stream) {
  slots_->pool().fork_guard().require_parent("this cache");
  std::lock_guard lock(mutex_);
  require_open(slot);
  reap();
  if (states_[slot] == SlotState::parked && !end_parked(slot)) return;
  close_slot(slot, stream);
  prepare();
}

/// The caller holds the lock.
void KvCache::close_slot(std::uint32_t slot, StreamHandle stream) {
  const bool fresh = states_[slot] == SlotState::fresh;
  const auto holds = fresh ? free_.tokens(slot) : static_cast<std::uint32_t>(slots_->limits()[slot].count);
  if (!fresh) fences_[slot] = readers(users_[slot], stream);
  fresh_ -= fresh;
  const Tokens held = index_.findable(slot);
  if (held.count != 0 && slots_->can_go_back(slot, held)) {
    cached_.use(slot);
    try {
      Slots::Needs(*slots_).note_use(slot);  // first: whoever takes memory right after takes older tokens
      slots_->set_aside(slot, held, fences_[slot], need_of_left());
      leave_to_tiers(slot, held);
    } catch (...) {
      Slots::Needs(*slots_).forget_use(slot);
      cached_.take(slot);
      throw;
    }
    states_[slot] = SlotState::cached;
    return;
  }
  forget_unit(slot);
  Slots::Needs(*slots_).forget_use(slot);  // of when it was parked
  slots_->truncate(slot, {}, fences_[slot]);
  index_.end(slot);
  free_.put(slot, holds);
  states_[slot] = SlotState::free;
}

}  // namespace vmm
