// How a sequence gets the tokens that it begins with, in the cheapest way: see kv_cache_prefix.cpp.
#include <algorithm>
#include <utility>

#include "base/error.h"
#include "base/undo.h"
#include "engine/kv_cache.h"

namespace vmm {
namespace {

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

/// A free slot that a prefix goes to, and how.
struct KvCache::Target {
  std::uint32_t slot;
  bool copy;
  Pages whole;    // pages that hold nothing but the prefix
  Pages missing;  // those of them that a copy would have to map first
};

/// The longest prefix that can be had now, or at least soon. The caller holds the lock.
KvCache::Prefix KvCache::find(const Prompt& prompt, StreamHandle stream) {
  const Epochs& epochs = slots_->pool().epochs();
  struct Away {  // not all of it is on the device
    Prefix prefix;
    Tokens holds;  // of it, on the device
  };
  Prefix best;
  std::vector<Away> away;
  const auto tokens = prompt.tokens.first(prompt.tokens.size() - 1);  // the last one's result is wanted
  const auto look = [&](const Slots::Needs& needs, Tokens length, std::vector<std::uint32_t>& slots) {
    if (length <= best.length) return false;
    const auto whole = [&](std::uint32_t slot) { return !is_open(slot) && index_.findable(slot) == length; };
    std::ranges::partition(slots, whole);
    for (std::uint32_t slot : slots) {
      if (states_[slot] <= SlotState::parked && is_taken(slot)) {  // what is not there nobody keeps
        away.push_back({{slot, length}, {}});
        continue;
      }
      if (!(is_open(slot) ? over_elsewhere(slot, stream) : epochs.complete(fences_[slot], stream))) continue;
      // What the window of a running sequence has left may be there, but not for long.
      if (is_open(slot) && !slots_->can_go_back(slot, length)) continue;
      const Tokens holds = needs.holds(slot, length);
      // What a window needs at another length may be there all the same.
      const bool all_or_less = !slots_->has_windows() || tiers_know(slot, length);
      if (holds < length && !is_open(slot) && all_or_less)
        away.push_back({{slot, length, whole(slot)}, holds});
      Tokens blocks = holds - holds % block;
      for (Tokens more = holds; blocks != more;) {  // for fewer tokens a window needs others
        more = needs.holds(slot, blocks);
        blocks = more - more % block;
      }
      if (blocks > best.length) best = {slot, blocks, blocks == length && whole(slot)};
      if (best.length == length) return false;
    }
    return true;
  };
  {
    const Slots::Needs needs(*slots_);
    index_.find(prompt.salt, tokens,
                [&](Tokens length, std::vector<std::uint32_t>& slots) { return look(needs, length, slots); });
  }
  for (const auto& [prefix, holds] : away) {
    if (states_[prefix.slot] == SlotState::leaving) {
      best.coming = std::max(best.coming, saved(prefix.slot, prefix.length, true));
      continue;
    }
    const Tokens had = saved(prefix.slot, prefix.length, prefix.whole), blocks = had - had % block;
    if (blocks > best.length)
      best = {prefix.slot, blocks, prefix.whole && blocks == prefix.length, true, best.coming};
    if (is_open(prefix.slot)) continue;
    const Tokens left = std::max(holds, prefix.whole ? had : saved(prefix.slot, prefix.length, true));
    if (left < prefix.length) index_.cut(prefix.slot, left);  // memory was short
  }
  return best;
}

/// Opens a sequence that has the longest prefix at once. Returns none where there is no such prefix, or it
/// cannot be had.
std::optional<KvCache::Opened> KvCache::attach(std::unique_lock<Mutex>& lock, const Prompt& prompt,
                                               StreamHandle stream) {
  const std::uint32_t user = users_bit(stream);
  const Nanoseconds until = slots_->pool().clock().now() + patience;
  while (not_open() != 0) {
    slots_->pool().epochs().poll();
    Prefix prefix = find(prompt, stream);
    if (prefix.coming > prefix.length && await_tier(lock, until)) continue;
    if (prefix.length.count == 0) break;
    prefix.whole = prefix.whole && !slots_->shares_pages_beyond(prefix.slot, prefix.length);
    std::optional<Target> own;
    if (!prefix.whole && !prefix.away) own = target_for(prefix);
    if (!prefix.whole && !own && !prefix.away) {
      prefix.whole = not_open() == 1 && !is_open(prefix.slot) &&
                     !slots_->shares_pages_beyond(prefix.slot, prefix.length);
      if (!prefix.whole && !await_a_slot(lock, prefix.slot, stream)) break;
      if (!prefix.whole) continue;
    }
    if (!is_open(prefix.slot) && !hold(prefix.slot)) {  // a tier copies its pages
      if (!await_tier(lock, until)) break;
      continue;
    }
    if (prefix.away) {
      std::optional<std::uint32_t> slot;
      try {
        slot = restore(prefix);
      } catch (...) {
        if (!is_open(prefix.slot)) release(prefix.slot);
        throw;
      }
      if (!slot) break;
      users_[*slot] |= user;
      return Opened{*slot, prefix.length};
    }
    const std::optional<bool> kept = keep(prefix);
    if (!kept) continue;
    if (!*kept) break;
    const std::uint32_t slot = own ? own->slot : prefix.slot;
    if (!(own ? fill(prefix, *own, stream) : adopt(prefix))) break;
    states_[slot] = SlotState::running;
    lengths_[slot] = previous_[slot] = static_cast<std::uint32_t>(prefix.length.count);
    users_[slot] |= user;
    fences_[slot].clear();
    return Opened{slot, prefix.length};
  }
  return std::nullopt;
}

/// Keeps the tokens of a slot that nobody is in, and that is held. Returns false where the tenant may not
/// keep so much, and none where somebody has taken pages.
std::optional<bool> KvCache::keep(const Prefix& prefix) {
  const bool open = is_open(prefix.slot);
  bool kept = true;
  try {
    Slots::Needs needs(*slots_);
    const bool all = needs.holds(prefix.slot, prefix.length) >= prefix.length;
    if (open) return all ? std::optional(true) : std::nullopt;
    if (all) kept = needs.keep(prefix.slot, prefix.length);
    if (all && kept) return true;
  } catch (...) {
    if (!open) undo_or_leak([&] { put_back(prefix); });
    throw;
  }
  put_back(prefix);
  return kept ? std::nullopt : std::optional(false);
}

/// Nobody keeps the tokens of a slot that nobody is in, or holds it.
void KvCache::put_back(const Prefix& prefix) {
  const Need need = tiers_know(prefix.slot, prefix.length) ? need_of_left() : Need::none;
  slots_->put_back(prefix.slot, prefix.length, fences_[prefix.slot], need);
  release(prefix.slot);
}

/// False where there is no memory for the slot's tail.
bool KvCache::adopt(const Prefix& prefix) {
  const Fence& readers = fences_[prefix.slot];
  if (!has_memory_for(
          slots_->pool().log(), [&] { slots_->adopt(prefix.slot, prefix.length, readers); },
          [&] { put_back(prefix); }))
    return false;
  Slots::Needs(*slots_).forget_use(prefix.slot);
  cached_.take(prefix.slot);
  index_.cut(prefix.slot, prefix.length);
  take_unit(prefix.slot, prefix.length);
  ++prefixes_.adopted;
  return true;
}

/// Whether the prefix is to be aliased or copied, and where to. None where no slot is free.
std::optional<KvCache::Target> KvCache::target_for(const Prefix& prefix) {
  const Epochs& epochs = slots_->pool().epochs();
  const Pages whole = slots_->whole_pages(prefix.length);
  const Pages free{slots_->pool().reclaiming().available(slots_->tenant(), Need::none) /
                   slots_->page_bytes()};
  if (!costs_.knows_copy() && AttachCosts::may_copy(whole, free)) measure_copy();
  const bool may_pay = costs_.copy(whole, {}, free);
  const auto target = [&](std::uint32_t slot) {
    const Pages missing = may_pay ? slots_->whole_pages_missing(slot, prefix.length) : whole;
    return Target{slot, may_pay && costs_.copy(whole, missing, free), whole, missing};
  };
  if (may_pay && free_.count() != 0) {  // whose pages are there, if any are
    const auto tokens = static_cast<std::uint32_t>(prefix.length.count);
    const std::uint32_t slot =
        free_.best_fit(tokens, [&](std::uint32_t each) { return epochs.complete(fences_[each]); });
    if (epochs.complete(fences_[slot]))
      if (const Target largest = target(slot); largest.copy) return largest;
  }
  const std::optional<std::uint32_t> slot = slot_to_fill(prefix.length, prefix.slot);
  if (!slot) return std::nullopt;
  return target(*slot);
}

/// Gives the tokens to the slot, which is free. False where there is no memory for what must be copied.
bool KvCache::fill(const Prefix& prefix, const Target& target, StreamHandle stream) {
  Pool& pool = slots_->pool();
  const std::uint32_t slot = target.slot;
  const auto leave_source = [&] {
    if (is_open(prefix.slot)) return;
    fences_[prefix.slot] = readers(users_[prefix.slot], stream);
    put_back(prefix);
  };
  const auto undo = [&] {
    index_.end(slot);
    fences_[slot] = slots_->fence_after(stream);  // copies into it may be under way
    slots_->truncate(slot, {}, fences_[slot]);    // where only the last call failed
    leave_source();
  };
  const Nanoseconds start = pool.clock().now();
  if (!has_memory_for(
          pool.log(),
          [&] {
            Slots::Needs(*slots_).take(slot, {});
            free_.set_tokens(slot, 0);
            note_copier(prefix.slot, stream);
            slots_->fork({prefix.slot, prefix.length, prefix.length}, slot, stream, !target.copy);
            pool.epochs().cover(stream);
            index_.copy(prefix.slot, slot, prefix.length);
            leave_source();
          },
          undo))
    return false;
  const Nanoseconds took = pool.clock().now() - start;
  if (target.copy) {
    costs_.copied(target.whole, target.missing, took);
    ++prefixes_.copied;
  } else {
    costs_.aliased(target.whole, took);
    ++prefixes_.aliased;
  }
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
      costs_.copied({times}, {}, pool.clock().now() - start);
    } catch (...) {
      slots_->fence_after(stream);  // whoever gets these pages must wait for the copies
      pool.streams().end(stream);
      throw;
    }
  } catch (const std::exception& error) {  // then they are aliased
    pool.log().write(LogLevel::debug, "the time of a copy was not measured: ", error.what());
  }
}

}  // namespace vmm
