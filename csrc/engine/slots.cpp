#include "engine/slots.h"

#include <algorithm>
#include <string>
#include <utility>

#include "base/error.h"
#include "engine/pager.h"

namespace vmm {

Slots::Slots(std::shared_ptr<Pager> pager, std::vector<SlotPart> parts, std::uint32_t count,
             const SlotsOptions& options)
    : pager_(std::move(pager)),
      parts_(std::move(parts)),
      options_(options),
      max_tokens_{~std::uint64_t{0}},
      slots_(count),
      limits_(count),
      covered_(count) {
  if (parts_.empty()) throw InvalidArgument("parts is empty; expected at least one");
  if (count == 0) throw InvalidArgument("count is 0; expected at least one slot");
  for (const SlotPart& part : parts_) {
    if (part.record_bytes.count == 0) throw InvalidArgument("record_bytes is 0; expected at least 1");
    if (part.extents == 0 || part.first_extent + part.extents * count > part.lease->extents())
      throw InvalidArgument("first_extent, extents: not inside the lease, which has " +
                            std::to_string(part.lease->extents()) + " extents");
    if (&part.lease->pool() != &pool()) throw InvalidArgument("parts: of another pool");
    if (&part.lease->reservation().tenant != &tenant()) throw InvalidArgument("parts: of several tenants");
    has_windows_ |= part.window.count != 0;
    max_tokens_ = std::min(max_tokens_, Tokens{part.lease->shape().extent_bytes / part.record_bytes});
  }
  if (options_.tail >= max_tokens_) throw InvalidArgument("tail: expected less than the slots have room for");
  max_tokens_ -= options_.tail;
  due_.reserve(count);
  at_hand_.reserve(count);
  if (options.max_tokens.count == 0) return;
  if (options.max_tokens > max_tokens_)
    throw InvalidArgument("max_tokens is " + std::to_string(options.max_tokens.count) +
                          "; the slots have room for " + std::to_string(max_tokens_.count));
  max_tokens_ = options.max_tokens;
}

std::shared_ptr<Slots> Slots::make(std::shared_ptr<Pager> pager, std::vector<SlotPart> parts,
                                   std::uint32_t count, const SlotsOptions& options) {
  return share(std::make_shared<Slots>(std::move(pager), std::move(parts), count, options));
}

Pool& Slots::pool() const noexcept { return pager_->pool(); }

Fence Slots::earlier_work() const {
  Fence all;
  for (const SlotPart& part : parts_) {
    const Fence& fence = part.lease->reservation().idle_fence;
    all.insert(all.end(), fence.begin(), fence.end());
  }
  return all;
}

void Slots::close() noexcept {
  std::lock_guard ahead(ahead_mutex_);
  parts_.clear();
  pager_->wake();  // it finds out when the work on them is over
}

void Slots::check_length(const char* argument, Tokens tokens) const {
  if (tokens > max_tokens_)
    throw InvalidArgument(std::string(argument) + " is " + std::to_string(tokens.count) +
                          " tokens; max_tokens is " + std::to_string(max_tokens_.count));
}

/// Returns how many tokens fit into the pages that so many tokens need.
Tokens Slots::room_in_pages_for(Tokens tokens) const {
  Tokens room = max_tokens_ + options_.tail;
  for (const SlotPart& part : parts_) room = std::min(room, part.room_in(part.pages_for(tokens)));
  return room;
}

Tokens Slots::kept(std::uint32_t slot) const { return without_tail({slots_.at(slot).kept.load()}); }

std::vector<PageRange> Slots::missing_ranges(const SlotPart& part, std::span<const SlotLength> wanted) const {
  std::vector<PageRange> out;
  out.reserve(wanted.size() * part.extents);
  for (const SlotLength& each : wanted)
    part.append_pages(each.slot, part.pages_for({slots_[each.slot].kept.load()}),
                      part.pages_for(reach(each.length)), out);
  return out;
}

Bytes Slots::missing(std::uint32_t slot, Tokens to) const {
  const SlotLength wanted{slot, to};
  Bytes sum;
  for (const SlotPart& part : parts_)
    sum += pool().missing(part.lease->reservation(), missing_ranges(part, std::span(&wanted, 1)));
  return sum;
}

Bytes Slots::not_kept(std::uint32_t slot, Tokens to) const {
  return parts_.front().page_bytes() * not_kept(slots_.at(slot), reach(to)).count;
}

/// Counts the pages of tokens [0, wanted), the tail included, that are not kept: mapping them takes no more.
Pages Slots::not_kept(const Slot& slot, Tokens wanted) const {
  const Tokens kept{slot.kept.load()};
  Pages sum;
  if (wanted <= kept) return sum;
  for (const SlotPart& part : parts_) sum += (part.pages_for(wanted) - part.pages_for(kept)) * part.extents;
  return sum;
}

std::int64_t Slots::cost(std::uint32_t slot, Tokens to, std::optional<StreamHandle> stream) const {
  const SlotLength wanted{slot, to};
  std::int64_t sum = 0;
  for (const SlotPart& part : parts_)
    sum += pool().reclaiming().cost(part.lease->reservation(), missing_ranges(part, std::span(&wanted, 1)),
                                    stream);
  return sum;
}

Bytes Slots::lacking(std::span<const SlotLength> wanted, StreamHandle stream) const {
  std::int64_t lacking = -pool().reclaiming().obtainable(stream, tenant().id);
  Bytes missing_of_all;
  for (const SlotLength& each : wanted) {
    lacking += cost(each.slot, each.length, stream);
    missing_of_all += missing(each.slot, each.length);
  }
  if (missing_of_all.count == 0 || lacking < 0) return {};
  return {static_cast<std::uint64_t>(lacking)};
}

Bytes Slots::held(std::uint32_t number) const {
  const Slot& slot = slots_.at(number);
  const Tokens tokens{std::max(slot.kept.load(), slot.announced.load())};
  Bytes sum;
  for (const SlotPart& part : parts_) {
    const LivePages live = part.live_pages({slot.passed}, tokens);
    sum += part.page_bytes() * ((live.end - live.first).count * part.extents);
  }
  return sum;
}

Bytes Slots::live(Tokens length) const {
  Bytes sum;
  for (const SlotPart& part : parts_) sum += part.live(length);
  return sum;
}

MapResult Slots::map_parts(std::span<const SlotLength> wanted, std::size_t& done) {
  MapResult sum;
  for (const SlotPart& part : parts_) {
    std::vector<ByteRange> overwritten;
    if (options_.write_intent)
      for (const SlotLength& each : wanted)
        part.append_bytes(each.slot, each.before, each.length, overwritten);
    MapOptions options;
    options.overwritten = overwritten;
    const MapResult result = pool().map(part.lease->reservation(), missing_ranges(part, wanted), options);
    sum.mapped += result.mapped;
    sum.waited |= result.waited;
    ++done;
  }
  return sum;
}

void Slots::advance(std::span<const SlotLength> wanted, const Fence& readers) {
  std::lock_guard owner(owner_mutex_);
  crossing_.clear();
  for (const SlotLength& each : wanted) {
    check_length("length", each.length);
    if (each.length > limits_.at(each.slot)) crossing_.push_back(each);
  }
  if (!crossing_.empty()) {
    std::ranges::sort(crossing_, {}, &SlotLength::slot);  // a write intent has ascending addresses
    std::size_t done = 0;
    try {
      map_counting_stalls(pool(), [&] { return map_parts(crossing_, done); });
    } catch (...) {
      for (std::size_t i = 0; i < done; ++i)
        pool().call_off(parts_[i].lease->reservation(), missing_ranges(parts_[i], crossing_));
      throw;
    }
  }
  for (const SlotLength& each : crossing_) {
    Slot& slot = slots_[each.slot];
    slot.kept = std::max(slot.kept.load(), reach(each.length).count);
    limits_[each.slot] = room_in_pages_for({slot.kept}) - options_.tail;
    move_windows(each.slot, each.before, readers);
  }
  announce(crossing_);
}

void Slots::move_windows(std::uint32_t number, Tokens before, const Fence& readers) {
  Slot& slot = slots_[number];
  if (before.count <= slot.passed) return;
  for (const SlotPart& part : parts_) {
    std::vector<PageRange> ranges;
    part.append_pages(number, part.behind_window({slot.passed}), part.behind_window(before), ranges);
    if (!ranges.empty()) pool().unkeep(part.lease->reservation(), ranges, readers);
  }
  slot.passed = before.count;
}

void Slots::truncate(std::uint32_t number, Tokens to, const Fence& readers) {
  check_length("to", to);
  std::lock_guard owner(owner_mutex_);
  Slot& slot = slots_.at(number);
  if (to.count != 0 && !can_go_back(number, to))
    throw InvalidArgument("to is " + std::to_string(to.count) +
                          " tokens; a layer's window before them was given up");
  const Tokens kept{std::min(slot.kept.load(), reach(to).count)};
  const Tokens needed = announce_no_more(number);
  for (const SlotPart& part : parts_) {
    std::vector<PageRange> ranges;
    part.append_pages(number, part.pages_for(kept), part.pages_for(needed), ranges);
    pool().unkeep(part.lease->reservation(), ranges, readers);
  }
  slot.passed = std::min(slot.passed, to.count);
  slot.kept = kept.count;
  limits_[number] = without_tail(room_in_pages_for(kept));
  std::lock_guard lock(due_mutex_);
  announce_kept(number);
}

void Slots::scrub(std::uint32_t slot, Tokens from, Tokens to, StreamHandle stream) {
  std::lock_guard owner(owner_mutex_);
  if (const Tokens limit = limits_.at(slot); from > to || to > limit)
    throw InvalidArgument("from, to: expected from <= to <= " + std::to_string(limit.count) + " tokens");
  for (const SlotPart& part : parts_) {
    std::vector<ByteRange> ranges;
    part.append_bytes(slot, from, to, ranges);
    for (const ByteRange& range : ranges)
      pool().zero(part.lease->reservation(), range.offset, range.size, stream);
  }
}

}  // namespace vmm
