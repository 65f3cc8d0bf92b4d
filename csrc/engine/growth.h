// Growth: one slot by itself, in which one layer of a Transformers cache grows.
#pragma once

#include <algorithm>
#include <memory>
#include <span>
#include <utility>
#include <vector>

#include "engine/slots_needs.h"

namespace vmm {

/// Whole pages of a growth's rows on their way to other rows.
class GrowthMove {
 public:
  GrowthMove(std::shared_ptr<Slots> slots, Slots::RowMove move)
      : slots_(std::move(slots)), move_(std::move(move)) {}
  /// Whether the rows share all that they are to share already.
  bool empty() const noexcept { return move_.empty(); }
  /// Throws Error when the driver fails; then the growth's tokens are lost and it must be cut back to 0.
  void finish();

 private:
  std::shared_ptr<Slots> slots_;
  Slots::RowMove move_;
};

/// Its owner makes one call at a time; different growths are advanced in parallel.
class Growth {
 public:
  /// With a window nothing is mapped beyond what is announced: a page more or less matters to a short one.
  static std::shared_ptr<Growth> make(std::shared_ptr<Pager> pager, std::vector<SlotPart> parts);
  explicit Growth(std::shared_ptr<Slots> slots) : slots_(std::move(slots)) {}

  /// Makes tokens [0, to) usable and tells the pager. The caller is about to write [frontier, to).
  /// Returns the limit: up to there the caller may write without calling again. Throws as Slots::advance.
  Tokens advance(Tokens to) {
    const SlotLength wanted{0, to, slots_->has_windows() ? std::min(passed_, frontier_) : frontier_};
    slots_->advance(std::span(&wanted, 1), {});
    frontier_ = std::max(frontier_, to);
    return limit();
  }
  /// The same where row i is about to be written what row like[i] is; see Slots::advance_alike.
  Tokens advance_alike(std::span<const std::uint32_t> like, Tokens to);
  /// Any work of the pool may still read what is given up: a growth does not know who does. Throws
  /// InvalidArgument for more tokens than there are, or as make_private().
  Tokens truncate(Tokens to, StreamHandle stream = {});
  /// Copies, on `stream`, the pages that tokens from `to` on go to and that are shared. Throws Error where
  /// an open epoch may read them, or what Slots::make_private throws, and nothing has changed.
  void make_private(Tokens to, StreamHandle stream);
  /// Of the `length` tokens that there are, those before `first` are needed no more. Returns for which
  /// `first` there is something to do.
  Tokens slide(Tokens first, Tokens length);

  // Parked, as one of ParkedGrowths: see Slots.
  std::vector<ParkedPage> pages(Tokens length) const { return slots_->pages_of(0, length); }
  void park(Tokens length, const Fence& readers) { slots_->park(0, length, readers); }
  void resume(Tokens length) { slots_->resume(0, length); }
  void adopt(Tokens length, const Fence& readers) {
    slots_->adopt(0, length, readers);
    frontier_ = length;
  }
  Bytes live(Tokens length) const { return slots_->live(length); }
  Bytes page_bytes() const { return slots_->page_bytes(); }

  // Rows: see Slots.
  /// Returns the limit; throws as Slots::take_rows.
  Tokens take_rows(const Growth& from, std::span<const std::uint32_t> rows, Tokens length);
  /// Throws as Slots::prepare_move, or Error where an open epoch may read the pages.
  GrowthMove prepare_move(std::span<const std::uint32_t> rows, Tokens length);
  void announce(Tokens to) { slots_->announce(0, to); }
  void scrub(Tokens from, Tokens to, StreamHandle stream = {}) { slots_->scrub(0, from, to, stream); }
  Bytes missing(Tokens to) const { return slots_->missing(0, to); }
  Bytes not_kept(Tokens to) const { return slots_->not_kept(0, to); }
  /// What advance() would take of what the tenant may have.
  Bytes price(Tokens to) const { return {static_cast<std::uint64_t>(slots_->cost(0, to, {}))}; }
  Bytes not_kept_alike(std::span<const std::uint32_t> like, Tokens to) const {
    return slots_->not_kept_alike(like, to);
  }
  Bytes price_alike(std::span<const std::uint32_t> like, Tokens to) const {
    return slots_->price_alike(like, to);
  }
  void check_length(const char* argument, Tokens tokens) const { slots_->check_length(argument, tokens); }
  Tokens max_tokens() const noexcept { return slots_->max_tokens(); }
  /// The tokens that there are: the largest length since the last truncation.
  Tokens frontier() const { return frontier_; }
  /// Up to there the caller may write without calling advance().
  Tokens limit() const { return slots_->limits()[0]; }
  Pool& pool() const noexcept { return slots_->pool(); }
  const Tenant& tenant() const noexcept { return slots_->tenant(); }

 private:
  void require_no_open_epoch() const;

  std::shared_ptr<Slots> slots_;
  Tokens frontier_;
  Tokens passed_;  // with so many tokens, no window reaches what was given up
};

/// Throws OutOfPages unless all growths together could advance to `to`; then announces it to each.
void admit(std::span<const std::shared_ptr<Growth>> growths, Tokens to);
/// Throws OutOfPages unless all growths together could advance to `to` with rows that are alike.
void admit_alike(std::span<const std::shared_ptr<Growth>> growths, std::span<const std::uint32_t> like,
                 Tokens to);

}  // namespace vmm
