// Growth: one slot by itself, in which one layer of a Transformers cache grows.
#pragma once

#include <algorithm>
#include <memory>
#include <span>
#include <utility>
#include <vector>

#include "engine/slots.h"

namespace vmm {

/// Its owner makes one call at a time; different growths are advanced in parallel.
class Growth {
 public:
  static std::shared_ptr<Growth> make(std::shared_ptr<Pager> pager, std::vector<SlotPart> parts) {
    return std::make_shared<Growth>(Slots::make(std::move(pager), std::move(parts), 1, {}));
  }
  explicit Growth(std::shared_ptr<Slots> slots) : slots_(std::move(slots)) {}

  /// Makes tokens [0, to) usable and tells the pager. The caller is about to write [frontier, to).
  /// Returns the limit: up to there the caller may write without calling again. Throws as Slots::advance.
  Tokens advance(Tokens to) {
    const SlotLength wanted{0, to, frontier_};
    slots_->advance(std::span(&wanted, 1), {});
    frontier_ = std::max(frontier_, to);
    return limit();
  }
  /// Any work of the pool may still read what is given up: a growth does not know who does. Throws
  /// InvalidArgument for more tokens than there are.
  Tokens truncate(Tokens to);
  void announce(Tokens to) { slots_->announce(0, to); }
  void scrub(Tokens from, Tokens to, StreamHandle stream = {}) { slots_->scrub(0, from, to, stream); }
  Bytes missing(Tokens to) const { return slots_->missing(0, to); }
  Bytes not_kept(Tokens to) const { return slots_->not_kept(0, to); }
  void check_length(const char* argument, Tokens tokens) const { slots_->check_length(argument, tokens); }
  Tokens max_tokens() const noexcept { return slots_->max_tokens(); }
  /// The tokens that there are: the largest length since the last truncation.
  Tokens frontier() const { return frontier_; }
  Pool& pool() const noexcept { return slots_->pool(); }
  const Tenant& tenant() const noexcept { return slots_->tenant(); }

 private:
  Tokens limit() const { return slots_->limits()[0]; }

  std::shared_ptr<Slots> slots_;
  Tokens frontier_;
};

/// Throws OutOfPages unless all growths together could advance to `to`; then announces it to each.
void admit(std::span<const std::shared_ptr<Growth>> growths, Tokens to);

}  // namespace vmm
