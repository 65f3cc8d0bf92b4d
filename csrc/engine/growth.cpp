#include "engine/growth.h"

#include <algorithm>
#include <string>

#include "base/error.h"

namespace vmm {

std::shared_ptr<Growth> Growth::make(std::shared_ptr<Pager> pager, std::vector<SlotPart> parts) {
  SlotsOptions options;
  options.look_ahead =
      std::ranges::none_of(parts, [](const SlotPart& part) { return part.window.count != 0; });
  return std::make_shared<Growth>(Slots::make(std::move(pager), std::move(parts), 1, options));
}

Tokens Growth::advance_alike(std::span<const std::uint32_t> like, Tokens to) {
  slots_->advance_alike(like, {0, to, frontier_}, pool().epochs().fence());
  frontier_ = std::max(frontier_, to);
  return limit();
}

Tokens Growth::truncate(Tokens to, StreamHandle stream) {
  if (to > frontier_)
    throw InvalidArgument("to is " + std::to_string(to.count) +
                          " tokens, more than there are: " + std::to_string(frontier_.count));
  make_private(to, stream);
  slots_->truncate(0, to, pool().epochs().fence());
  frontier_ = to;
  passed_ = std::min(passed_, to);
  return limit();
}

void Growth::make_private(Tokens to, StreamHandle stream) {
  if (!slots_->shares_pages_beyond(0, to)) return;
  require_no_open_epoch();
  const auto readers = [&] { return slots_->fence_after(stream); };
  if (slots_->make_private(0, to, readers, stream)) return;
  slots_->truncate(0, {}, pool().epochs().fence());
  frontier_ = passed_ = {};
  throw Error("the driver failed to map the copy of a shared page: the tokens are lost");
}

/// What waits for an open epoch would wait for its owner, who may be the caller.
void Growth::require_no_open_epoch() const {
  pool().epochs().poll();
  if (pool().epochs().waits_for_open_epoch(pool().epochs().fence()))
    throw Error("pages that are shared must be exchanged, and an open epoch may read them: end it first");
}

Tokens Growth::slide(Tokens first, Tokens length) {
  frontier_ = std::max(frontier_, length);
  const Tokens window = slots_->window();
  passed_ = std::max(passed_, first + (window - Tokens{1}));
  return slots_->slide(0, passed_, pool().epochs().fence()) - (window - Tokens{1});
}

Tokens Growth::take_rows(const Growth& from, std::span<const std::uint32_t> rows, Tokens length) {
  slots_->take_rows(*from.slots_, rows, length);
  frontier_ = length;
  passed_ = from.passed_;
  return limit();
}

GrowthMove Growth::prepare_move(std::span<const std::uint32_t> rows, Tokens length) {
  GrowthMove move(slots_, slots_->prepare_move(rows, length));
  if (!move.empty()) require_no_open_epoch();
  return move;
}

void GrowthMove::finish() {
  if (empty() || slots_->finish_move(move_, slots_->pool().epochs().fence())) return;
  throw Error("the driver failed to map shared pages at other rows: the tokens are lost");
}

void admit(std::span<const std::shared_ptr<Growth>> growths, Tokens to) {
  if (growths.empty()) return;
  Bytes missing, not_kept, price;
  for (const auto& growth : growths) {
    growth->check_length("to", to);
    missing += growth->missing(to);
    not_kept += growth->not_kept(to);
    price += growth->price(to);
  }
  // Pages that are mapped but not kept count as obtainable. These growths need them themselves, so they are
  // part of what must be obtainable. A tenant is not charged anew for those that work still uses.
  const Bytes asked = missing.count == 0 ? Bytes{} : not_kept;
  growths.front()->pool().reclaiming().require_obtainable(asked, price, growths.front()->tenant().id,
                                                          Need::kept);
  for (const auto& growth : growths) growth->announce(to);
}

void admit_alike(std::span<const std::shared_ptr<Growth>> growths, std::span<const std::uint32_t> like,
                 Tokens to) {
  if (growths.empty()) return;
  Bytes not_kept, price;
  for (const auto& growth : growths) {
    growth->check_length("to", to);
    not_kept += growth->not_kept_alike(like, to);
    price += growth->price_alike(like, to);
  }
  growths.front()->pool().reclaiming().require_obtainable(not_kept, price, growths.front()->tenant().id,
                                                          Need::kept);
}

}  // namespace vmm
