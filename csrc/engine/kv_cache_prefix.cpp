// Sequences that begin with tokens which others have computed.
//
// A sequence that ends leaves its tokens in its slot, which is *cached* then. One that begins with the same
// gets them in the cheapest way. Where that slot holds nothing else that could be found, the sequence
// *adopts* it as it lies. Else it has the tokens in a slot of its own, where their pages are mapped a second
// time
// (*aliased*) or copied.
#include <algorithm>
#include <chrono>
#include <utility>

#include "base/error.h"
#include "base/undo.h"
#include "engine/kv_cache.h"

namespace vmm {
namespace {

constexpr Tokens block{PrefixIndex::block_tokens};

/// Returns whether there was memory for the work. Where there was not, or it throws for another reason, this
/// undoes it.
template <class Work, class Undo>
bool has_memory_for(Log& log, Work work, Undo undo) {
  try {
    work();
    return true;
  } catch (const OutOfPages& error) {
    log.write(LogLevel::debug, "a prefix was not attached: ", error.what());
  } catch (const MappingLimit& error) {
    log.write(LogLevel::warning, "a prefix was not attached: ", error.what());
  } catch (...) {
    undo();
    throw;
  }
  undo();
  return false;
}

}  // namespace

/// Tokens of a prompt that a slot has.
struct KvCache::Prefix {
  std::uint32_t slot = no_slot;
  Tokens length{};
  bool whole = false;  // nobody is in the slot, and it holds nothing else that could be found
};

KvCache::Opened KvCache::open_prompt(const Prompt& prompt, Tokens announced, StreamHandle stream) {
  Pool& pool = slots_->pool();
  pool.fork_guard().require_parent("this cache");
  const Tokens length{prompt.tokens.size()};
  slots_->check_length("tokens", length);
  slots_->check_length("announce", announced);
  stream = pool.epochs().named(stream);
  std::unique_lock lock(mutex_);
  prefixes_.looked_up += length;
  std::optional<Opened> opened;
  try {
    if (length > block && (opened = attach(lock, prompt, stream))) {
      prefixes_.found += opened->cached;
      const Tokens next = std::min(opened->cached + first_tokens(), slots_->max_tokens());
      slots_->announce(opened->slot, std::max(announced, next));
      prepare();
    } else {
      opened = Opened{open_anew(length, announced, stream), {}};
      index_.begin(opened->slot, prompt.salt);
    }
  } catch (...) {  // nobody would ever close it
    if (opened) undo_or_leak([&] { close_slot(opened->slot, stream); });
    throw;
  }
  return *opened;
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

/// The longest prefix that can be had now. The caller holds the lock.
KvCache::Prefix KvCache::find(const Slots::Needs& needs, const Prompt& prompt, StreamHandle stream) {
  const Epochs& epochs = slots_->pool().epochs();
  Prefix best;
  std::vector<std::pair<std::uint32_t, Tokens>> lost;
  const auto tokens = prompt.tokens.first(prompt.tokens.size() - 1);  // the last one's result is wanted
  index_.find(prompt.salt, tokens, [&](Tokens length, std::vector<std::uint32_t>& slots) {
    if (length <= best.length) return false;
    const auto whole = [&](std::uint32_t slot) { return !is_open(slot) && index_.findable(slot) == length; };
    std::ranges::partition(slots, whole);
    for (std::uint32_t slot : slots) {
      if (!(is_open(slot) ? over_elsewhere(slot, stream) : epochs.complete(fences_[slot], stream))) continue;
      // What the window of a running sequence has left may be there, but not for long.
      if (is_open(slot) && !slots_->can_go_back(slot, length)) continue;
      const Tokens holds = needs.holds(slot, length);
      // What a window needs at another length may be there all the same.
      if (holds < length && !is_open(slot) && !slots_->has_windows()) lost.emplace_back(slot, holds);
      Tokens blocks = holds - holds % block;
      for (Tokens more = holds; blocks != more;) {  // for fewer tokens a window needs others
        more = needs.holds(slot, blocks);
        blocks = more - more % block;
      }
      if (blocks > best.length) best = {slot, blocks, blocks == length && whole(slot)};
      if (best.length == length) return false;
    }
    return true;
  });
  for (const auto& [slot, holds] : lost) index_.cut(slot, holds);  // memory was short
  return best;
}

/// Opens a sequence that has the longest prefix at once. Returns none where there is no such prefix, or it
/// cannot be had.
std::optional<KvCache::Opened> KvCache::attach(std::unique_lock<Mutex>& lock, const Prompt& prompt,
                                               StreamHandle stream) {
  const std::uint32_t user = users_bit(stream);
  while (not_open() != 0) {
    slots_->pool().epochs().poll();
    Prefix prefix = find(Slots::Needs(*slots_), prompt, stream);
    if (prefix.length.count == 0) break;
    prefix.whole = prefix.whole && !slots_->shares_pages_beyond(prefix.slot, prefix.length);
    std::optional<std::uint32_t> own;
    if (!prefix.whole) own = slot_to_fill(prefix.length, prefix.slot);
    if (!prefix.whole && !own) {
      prefix.whole = not_open() == 1 && !is_open(prefix.slot) &&
                     !slots_->shares_pages_beyond(prefix.slot, prefix.length);
      if (!prefix.whole && !await_a_slot(lock, prefix.slot, stream)) break;
      if (!prefix.whole) continue;
    }
    const std::optional<bool> kept = keep(prefix);
    if (!kept) continue;
    if (!*kept) break;
    const std::uint32_t slot = own.value_or(prefix.slot);
    if (!(own ? fill(prefix, slot, stream) : adopt(prefix))) break;
    states_[slot] = SlotState::running;
    lengths_[slot] = previous_[slot] = static_cast<std::uint32_t>(prefix.length.count);
    users_[slot] |= user;
    fences_[slot].clear();
    return Opened{slot, prefix.length};
  }
  return std::nullopt;
}

/// Keeps the tokens of a slot that nobody is in. Returns false where the tenant may not keep so much, and
/// none where somebody has taken pages.
std::optional<bool> KvCache::keep(const Prefix& prefix) {
  const auto put_back = [&] { slots_->put_back(prefix.slot, prefix.length, fences_[prefix.slot]); };
  bool kept = true;
  try {
    Slots::Needs needs(*slots_);
    if (needs.holds(prefix.slot, prefix.length) < prefix.length) return std::nullopt;
    if (!is_open(prefix.slot)) kept = needs.keep(prefix.slot, prefix.length);
  } catch (...) {
    if (!is_open(prefix.slot)) undo_or_leak(put_back);
    throw;
  }
  if (!kept) put_back();
  return kept;
}

/// False where there is no memory for the slot's tail.
bool KvCache::adopt(const Prefix& prefix) {
  const Fence& readers = fences_[prefix.slot];
  if (!has_memory_for(
          slots_->pool().log(), [&] { slots_->adopt(prefix.slot, prefix.length, readers); },
          [&] { slots_->put_back(prefix.slot, prefix.length, readers); }))
    return false;
  Slots::Needs(*slots_).forget_use(prefix.slot);
  cached_.take(prefix.slot);
  index_.cut(prefix.slot, prefix.length);
  ++prefixes_.adopted;
  return true;
}

/// Gives the tokens to the slot, which is free. False where there is no memory for what must be copied.
bool KvCache::fill(const Prefix& prefix, std::uint32_t slot, StreamHandle stream) {
  Pool& pool = slots_->pool();
  const auto leave_source = [&] {
    if (is_open(prefix.slot)) return;
    fences_[prefix.slot] = readers(users_[prefix.slot], stream);
    slots_->put_back(prefix.slot, prefix.length, fences_[prefix.slot]);
  };
  const auto undo = [&] {
    index_.end(slot);
    fences_[slot] = slots_->fence_after(stream);  // copies into it may be under way
    slots_->truncate(slot, {}, fences_[slot]);    // where only the last call failed
    leave_source();
  };
  const Pages whole = slots_->whole_pages(prefix.length);
  const Pages free{pool.reclaiming().available(slots_->tenant(), Need::none) / slots_->page_bytes()};
  if (!costs_.knows_copy() && AttachCosts::may_copy(whole, free)) measure_copy();
  const bool copy = costs_.copy(whole, free);
  const Nanoseconds start = pool.clock().now();
  if (!has_memory_for(
          pool.log(),
          [&] {
            Slots::Needs(*slots_).take(slot, {});
            free_.set_tokens(slot, 0);
            note_copier(prefix.slot, stream);
            slots_->fork({prefix.slot, prefix.length, prefix.length}, slot, stream, !copy);
            pool.epochs().cover(stream);
            index_.copy(prefix.slot, slot, prefix.length);
            leave_source();
          },
          undo))
    return false;
  // What is copied needs pages, too, which can cost more than the copy.
  copy ? costs_.copied(whole, pool.clock().now() - start) : costs_.aliased(whole, pool.clock().now() - start);
  ++(copy ? prefixes_.copied : prefixes_.aliased);
  free_.take(slot);
  if (states_[slot] == SlotState::ready) std::erase(ready_, slot);
  users_[slot] = copiers_[slot] = 0;
  return true;
}

/// Copies a page some times for no other purpose than to know how long that takes. On a GPU nothing else
/// tells: a copy is over long after the call has returned. So there it has a stream of its own, which beside
/// all other work can be waited for.
void KvCache::measure_copy() {
  constexpr std::uint64_t times = 8;
  Pool& pool = slots_->pool();
  const Bytes page = slots_->page_bytes();
  const PageRange both{{0}, {2}};
  try {
    if (pool.reclaiming().available(slots_->tenant(), Need::none) < page * 2)
      return;  // others keep what they have
    const auto lease = pool.reserve(
        {.page_bytes = page, .extent_bytes = page * 2, .longest = {}, .tenant = slots_->tenant().id});
    pool.map(lease->reservation(), std::span(&both, 1), {});
    const bool own = pool.driver().capabilities().gpu;
    const StreamHandle stream = own ? pool.streams().create() : StreamHandle{};
    try {
      const Nanoseconds start = pool.clock().now();
      for (std::uint64_t i = 0; i < times; ++i)
        pool.driver().copy(lease->base() + page, lease->base(), page, stream);
      if (own) pool.streams().destroy(stream);  // waits for the work on it
      costs_.copied({times}, pool.clock().now() - start);
    } catch (...) {
      slots_->fence_after(stream);  // whoever gets these pages must wait for the copies
      pool.streams().end(stream);
      throw;
    }
  } catch (const std::exception& error) {  // then they are aliased
    pool.log().write(LogLevel::debug, "the time of a copy was not measured: ", error.what());
  }
}

/// Waits a moment, without the lock, for a slot other than `but`. False where none comes by itself.
bool KvCache::await_a_slot(std::unique_lock<Mutex>& lock, std::uint32_t but, StreamHandle stream) {
  Pool& pool = slots_->pool();
  bool coming = false;
  for (std::uint32_t slot = 0; slot < slots_->count() && !coming; ++slot) {
    if (is_open(slot) || slot == but || pool.epochs().waits_for_open_epoch(fences_[slot], stream)) continue;
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
    if (slot == but || !over(slot)) continue;
    const std::uint32_t found = slot;
    evict(found);
    return found;
  }
  return std::nullopt;
}

/// A cached slot is free from here on: nobody finds its tokens any more.
void KvCache::evict(std::uint32_t slot) {
  slots_->let_go(slot, fences_[slot]);
  Slots::Needs(*slots_).forget_use(slot);
  cached_.take(slot);
  free_.put(slot, static_cast<std::uint32_t>(index_.findable(slot).count));
  index_.end(slot);
  states_[slot] = SlotState::free;
}

/// A sequence is to begin anew with `first` tokens. Where no slot is free for it, or memory is so short that
/// something must go for it, the cached slot that was used longest ago is evicted: its pages are mapped.
void KvCache::make_way(Tokens first, StreamHandle stream) {
  if (cached_.count() == 0) return;
  if (free_.count() != 0) {
    std::uint32_t largest = no_slot;
    free_.from_largest([&](std::uint32_t slot) {
      largest = slot;
      return false;
    });
    if (free_.tokens(largest) >= first.count) return;
    if (slots_->not_kept(largest, first) <=
        slots_->pool().reclaiming().available(slots_->tenant(), Need::none))
      return;
  }
  const Epochs& epochs = slots_->pool().epochs();
  const auto& cached = cached_.oldest_first();
  const auto over = std::ranges::find_if(
      cached, [&](const auto& each) { return epochs.complete(fences_[each.second], stream); });
  if (over != cached.end())
    evict(over->second);
  else if (free_.count() == 0)
    evict(cached.begin()->second);
}

}  // namespace vmm
