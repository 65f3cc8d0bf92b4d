// Where the tokens of a slot lie: address arithmetic, which nothing else in the engine does.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "memory/pool.h"

namespace vmm {

/// Pages of an extent, from its start.
struct LivePages {
  Pages first, end;
};

/// A part of every slot's tokens that lies in one lease, for example a layer's keys. Each slot has `extents`
/// neighbouring extents of the lease, the first slot those from `first_extent` on; in each of them token t
/// has `record_bytes` bytes from t × record_bytes on.
struct SlotPart {
  std::shared_ptr<Lease> lease;
  std::uint64_t first_extent = 0;
  std::uint64_t extents = 1;
  Bytes record_bytes;
  Tokens window{};  // a token attends only to so many, itself included; 0: to all before it

  Bytes page_bytes() const { return lease->shape().page_bytes; }
  /// How many pages at the start of each extent hold tokens [0, tokens).
  Pages pages_for(Tokens tokens) const {
    return {round_up(record_bytes * tokens.count, page_bytes()) / page_bytes()};
  }
  /// How many pages at the start of each extent hold nothing but tokens [0, tokens).
  Pages whole_pages(Tokens tokens) const { return {record_bytes * tokens.count / page_bytes()}; }
  /// Whole tokens that so many pages at the start of an extent hold.
  Tokens room_in(Pages pages) const { return {page_bytes() * pages.count / record_bytes}; }
  /// The first pages of each extent that no later token attends to once so many tokens are there.
  Pages behind_window(Tokens before) const {
    if (window.count == 0 || before < window) return {};
    return {record_bytes * (before.count + 1 - window.count) / page_bytes()};
  }
  /// The pages of each extent that a sequence of `tokens` tokens needs when `before` of them were there
  /// before the step that is computed now: those that its window reaches.
  LivePages live_pages(Tokens before, Tokens tokens) const {
    const Pages first = behind_window(before);
    return {first, std::max(first, pages_for(tokens))};
  }
  /// Bytes of a slot's first `length` tokens, as far as the window reaches.
  Bytes live(Tokens length) const {
    const Tokens tokens = window.count == 0 ? length : std::min(length, window);
    return record_bytes * (tokens.count * extents);
  }
  /// Appends pages [from, to) of each of the slot's extents, but no page beyond their end.
  void append_pages(std::uint32_t slot, Pages from, Pages to, std::vector<PageRange>& out) const {
    for (std::uint64_t i = 0; i < extents; ++i) append_pages_of(slot, i, from, to, out);
  }
  /// The same for one of the slot's extents.
  void append_pages_of(std::uint32_t slot, std::uint64_t extent, Pages from, Pages to,
                       std::vector<PageRange>& out) const {
    const Pages all{lease->shape().extent_bytes / page_bytes()};
    to = std::min(to, all);
    if (from >= to) return;
    const std::uint64_t start = (first(slot) + extent) * all.count + from.count;
    out.push_back({{static_cast<std::uint32_t>(start)}, to - from});
  }
  /// Appends the bytes of tokens [from, to) in each of the slot's extents.
  void append_bytes(std::uint32_t slot, Tokens from, Tokens to, std::vector<ByteRange>& out) const {
    append_extents(slot, record_bytes * from.count, record_bytes * to.count, out);
  }
  /// Appends bytes [from, to) of each of the slot's extents.
  void append_extents(std::uint32_t slot, Bytes from, Bytes to, std::vector<ByteRange>& out) const {
    if (from >= to) return;
    for (std::uint64_t i = first(slot); i < first(slot) + extents; ++i)
      out.push_back({lease->shape().extent_bytes * i + from, to - from});
  }
  /// The first of the slot's extents.
  std::uint64_t first(std::uint32_t slot) const { return first_extent + slot * extents; }
};

}  // namespace vmm
