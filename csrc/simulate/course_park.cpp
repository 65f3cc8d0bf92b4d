// Sequences that are parked, in a course: what becomes of them, and what is known of their memory.
#include <algorithm>
#include <string>

#include "base/error.h"
#include "simulate/course_tries.h"

namespace vmm {

using namespace std::chrono_literals;

void Course::change_what_is_parked() {
  if (chance(options_.tiers->parks_per_million) && !running_.empty()) park(pick(running_.size()));
  if (pick(8) == 0 && !running_.empty()) prefetch();
}

void Course::park(std::size_t i) {
  Sequence& sequence = running_[i];
  if (sequence.parked || sequence.length == 0) return;
  ParkHint hint;
  if (pick(2) == 0) hint.category = pick(2) == 0 ? "human" : "tool";
  if (pick(2) == 0) hint.priority = static_cast<int>(pick(3));
  const StreamHandle stream = streams_[sequence.stream].handle;
  if (!tried_beside_others(sequence.cache, [&] { cache_of(sequence).park(sequence.slot, hint, stream); }))
    return;
  ++totals_.parked;
  sequence.parked = true;
  sequence.previous = sequence.computed = sequence.length;
  sequence.shared.clear();
}

/// Of one or two sequences, which may be awake, says that they will be wanted: at once, or soon.
void Course::prefetch() {
  const std::size_t cache = running_[pick(running_.size())].cache;
  std::vector<std::int32_t> slots;
  for (std::uint64_t n = 1 + pick(2); n > 0; --n)
    if (const Sequence& one = running_[pick(running_.size())]; one.cache == cache)
      slots.push_back(static_cast<std::int32_t>(one.slot));
  KvCache& kv = *caches_[cache].kv;
  for (const std::int32_t slot : slots) {
    const auto number = static_cast<std::uint32_t>(slot);
    const bool is_there = kv.ready(number);
    const std::optional<Nanoseconds> time = kv.load_time(number);
    if (is_there && time != Nanoseconds{}) throw InvariantViolation("what is there would have to be loaded");
  }
  const Nanoseconds in{static_cast<Nanoseconds::rep>(pick(2) == 0 ? 0 : pick(50'000'000))};
  kv.prefetch(slots, world_.now() + in);
}

std::vector<std::uint32_t> Course::parked_among(std::span<const std::size_t> places) const {
  std::vector<std::uint32_t> out;
  for (const std::size_t i : places)
    if (running_[i].parked) out.push_back(running_[i].slot);
  return out;
}

/// Those of the cache's sequences that a call named and that are not parked any more are awake.
void Course::note_awake(std::size_t cache, std::span<const std::uint32_t> named) {
  if (named.empty()) return;
  const std::vector<std::uint32_t> parked = caches_[cache].kv->parked();
  for (Sequence& each : running_)
    if (each.cache == cache && each.parked && std::ranges::find(named, each.slot) != named.end() &&
        !std::ranges::binary_search(parked, each.slot))
      wake_up(each);
}

void Course::wake_up(Sequence& sequence) {
  ++totals_.woken;
  sequence.parked = false;
  note_shared(sequence);
  if (options_.contents) check_contents(sequence);
}

/// Takes over what a call has said about tokens that were lost. They may be lost only where a tier was made
/// to fail. (Tokens before those go with them where their pages are shared, for they would be written.)
void Course::lose(std::size_t cache, const SequenceLost& error) {
  for (const SequenceLost::Loss& loss : error.losses()) {
    const auto found = std::ranges::find_if(
        running_, [&](const Sequence& each) { return each.cache == cache && each.slot == loss.slot; });
    if (found == running_.end() || !found->parked)
      throw InvariantViolation("a sequence has lost tokens that was not parked");
    const Tokens unread = first_unread(*found);
    if (loss.first > unread || unread.count == found->length)
      throw InvariantViolation("tokens from " + std::to_string(loss.first.count) +
                               " on are said to be lost, but reads have failed from " +
                               std::to_string(unread.count) + " on");
    ++totals_.lost;
    found->previous = loss.first.count;
    cut(*found, loss.first.count);
    wake_up(*found);
  }
}

/// The first token of the sequence of which a page could not be read since it was parked, or opened; all of
/// them where windows do not let it go back.
Tokens Course::first_unread(const Sequence& sequence) {
  std::optional<Tokens> first;
  for (const ParkedPage& page : cache_of(sequence).slots().pages_of(sequence.slot, {sequence.length}))
    if (tiers_->take_failure(page.reservation->address_of(page.page)))
      first = std::min(first.value_or(page.first), page.first);
  if (!first) return Tokens{sequence.length};
  return cache_of(sequence).slots().has_windows() ? Tokens{} : *first;
}

/// A sequence is in the slot that knows nothing of what became of the one before.
void Course::forget_unread(std::size_t cache, std::uint32_t slot) {
  if (tiers_ == nullptr) return;
  for (const ParkedPage& page : caches_[cache].kv->slots().pages_of(slot, {max_tokens()}))
    tiers_->take_failure(page.reservation->address_of(page.page));
}

/// The most that a parked sequence may keep: its pages, until they are cleaned or while they are loaded.
Bytes Course::parked_bytes(const Sequence& sequence) const {
  Bytes sum;
  for (const SlotPart& part : parts_of(sequence)) {
    const LivePages live = part.live_pages({sequence.length}, {sequence.length});
    sum += part.page_bytes() * ((live.end - live.first).count * part.extents);
  }
  return sum;
}

/// By nobody who is known: what tiers copy is kept meanwhile, and so is what ended in the middle of that.
Bytes Course::moving() const {
  if (tiers_ == nullptr) return {};
  Bytes sum = tiers_->page_bytes() * tiers_->pending();
  for (const Left& left : left_) sum += left.size;
  return sum;
}

Bytes Course::kept_at_most() const {
  Bytes sum = kept() + moving();
  for (const Sequence& each : running_)
    if (each.parked) sum += parked_bytes(each);
  return sum;
}

Bytes Course::kept_at_most(TenantId tenant) const {
  Bytes sum = kept(tenant) + moving();
  for (const Sequence& each : running_)
    if (each.parked && owner_of(each.cache).id == tenant) sum += parked_bytes(each);
  return sum;
}

/// What a cache has left has ended when it says so; what caches have left that are gone, with the transfers.
void Course::forget_what_has_ended() {
  std::erase_if(left_, [&](const Left& left) {
    return left.cache ? caches_[*left.cache].kv->leaving_slots() == 0 : tiers_->pending() == 0;
  });
}

void Course::check_parked(std::size_t cache) {
  std::vector<std::uint32_t> parked;
  for (const Sequence& each : running_)
    if (each.cache == cache && each.parked) parked.push_back(each.slot);
  std::ranges::sort(parked);
  if (parked != caches_[cache].kv->parked())
    throw InvariantViolation("other sequences are parked than should be");
}

/// Nobody calls the caches meanwhile, so what has ended is noticed only now. At times closed sequences must
/// leave nothing in the tiers.
void Course::rest_tiers() {
  const bool all = pick(2) == 0;
  for (Cache& cache : caches_) all ? give_up_prefixes(cache) : call(cache);
  if (!world_.settle()) throw InvariantViolation("the pager never comes to rest with tiers");
  if (!all) return;
  if (tiers_->used() != 0)
    throw InvariantViolation(std::to_string(tiers_->used()) + " slots of tiers are nobody's, but not free");
  tiers_->mend();
}

void Course::call(Cache& cache) {
  const std::uint32_t slot = cache.kv->open({1}, {}, streams_.front().handle);
  cache.kv->close(slot, streams_.front().handle);
}

/// Where every slot is taken, nothing is left of closed sequences.
void Course::give_up_prefixes(Cache& cache) {
  std::vector<std::uint32_t> slots;
  while (slots.size() < options_.slots) slots.push_back(cache.kv->open({1}, {}, streams_.front().handle));
  for (const std::uint32_t slot : slots) cache.kv->close(slot, streams_.front().handle);
}

}  // namespace vmm
