// One slot by itself: what a layer of a cache grows in.
#pragma once

#include <memory>
#include <span>
#include <utility>
#include <vector>

#include "engine/slots.h"

namespace vmm {

using GrowthPart = SlotPart;

/// Calls by the owner are serialised; different growths are advanced in parallel.
class Growth {
 public:
  static std::shared_ptr<Growth> make(std::shared_ptr<Pager> pager, std::vector<GrowthPart> parts) {
    return std::make_shared<Growth>(Slots::make(std::move(pager), std::move(parts), 1, {}));
  }
  explicit Growth(std::shared_ptr<Slots> slots) : slots_(std::move(slots)) {}

  /// Makes tokens [0, to) usable and tells the pager. The caller is about to write [frontier, to).
  /// Returns the limit: up to there the caller may write without calling again. Throws as Slots::advance.
  Tokens advance(Tokens to) {
    const SlotLength wanted{0, to};
    slots_->advance(std::span(&wanted, 1));
    return slots_->limit(0);
  }
  /// Any work of the pool may still read what is given up: a growth does not know who does.
  Tokens truncate(Tokens to) {
    slots_->truncate(0, to, pool().epochs().fence());
    return slots_->limit(0);
  }
  void announce(Tokens to) { slots_->announce(0, to); }
  void scrub(Tokens from, Tokens to, StreamHandle stream = {}) { slots_->scrub(0, from, to, stream); }
  Bytes missing(Tokens to) const { return slots_->missing(0, to); }
  void check_length(const char* argument, Tokens tokens) const { slots_->check_length(argument, tokens); }
  Tokens max_tokens() const noexcept { return slots_->max_tokens(); }
  Tokens frontier() const { return slots_->frontier(0); }
  Pool& pool() const noexcept { return slots_->pool(); }

 private:
  std::shared_ptr<Slots> slots_;
};

/// Throws OutOfPages unless all growths together could advance to `to`; then announces it to each.
void admit(std::span<const std::shared_ptr<Growth>> growths, Tokens to);

}  // namespace vmm
