// Rows that are written alike: samples and beams of one prompt, which the model computes in every row.
#include <algorithm>

#include "base/error.h"
#include "engine/slots.h"

namespace vmm {

/// Makes sure that the pager maps nothing here until something is announced again.
void Slots::call_off_ahead(std::uint32_t number) {
  std::lock_guard until_it_is_done(ahead_mutex_);
  std::lock_guard lock(due_mutex_);
  announce_kept(number);
  Slot& slot = slots_[number];
  slot.due = false;
  slot.asked = never;
  std::erase(due_, number);
}

/// What is to be kept besides what is, but for what rows have of the row that they are like.
std::vector<PageRange> Slots::own_pages_alike(const SlotPart& part, std::span<const std::uint32_t> like,
                                              Tokens to) const {
  const std::uint64_t each = part.extents / like.size();
  const Pages from = part.pages_for({slots_.front().kept.load()}), end = part.pages_for(reach(to));
  const Pages whole = std::max(from, part.whole_pages(to));
  std::vector<PageRange> own;
  for (std::uint32_t row = 0; row < like.size(); ++row)
    for (std::uint64_t extent = row * each; extent < (row + 1) * each; ++extent)
      part.append_pages_of(0, extent, like[row] == row ? from : whole, end, own);
  return own;
}

Bytes Slots::not_kept_alike(std::span<const std::uint32_t> like, Tokens to) const {
  require_rows(like.size());
  Bytes sum;
  for (const SlotPart& part : parts_)
    for (const PageRange& range : own_pages_alike(part, like, to))
      sum += part.page_bytes() * range.count.count;
  return sum;
}

Bytes Slots::price_alike(std::span<const std::uint32_t> like, Tokens to) const {
  require_rows(like.size());
  std::int64_t sum = 0;
  for (const SlotPart& part : parts_)
    sum += pool().reclaiming().cost(part.lease->reservation(), own_pages_alike(part, like, to), {});
  return {static_cast<std::uint64_t>(sum)};
}

void Slots::advance_alike(std::span<const std::uint32_t> like, const SlotLength& wanted,
                          const Fence& earlier) {
  check_length("length", wanted.length);
  require_rows(like.size());
  for (std::uint32_t row : like)
    if (row >= like.size() || like[row] != row) throw InvalidArgument("like: expected rows like themselves");
  if (wanted.length <= limits_.front()) return;
  std::lock_guard owner(owner_mutex_);
  call_off_ahead(0);
  const Tokens kept{slots_.front().kept.load()};
  std::vector<std::vector<PageRange>> all(parts_.size());
  try {
    for (std::size_t i = 0; i < parts_.size(); ++i) {
      const SlotPart& part = parts_[i];
      const std::uint64_t each = part.extents / like.size();
      const Pages from = part.pages_for(kept), whole = std::max(from, part.whole_pages(wanted.length));
      const std::vector<PageRange> own = own_pages_alike(part, like, wanted.length);
      std::vector<PageRange> source, target;
      for (std::uint32_t row = 0; row < like.size(); ++row)
        for (std::uint64_t extent = row * each; extent < (row + 1) * each; ++extent) {
          if (like[row] == row) continue;
          part.append_pages_of(0, like[row] * each + extent % each, from, whole, source);
          part.append_pages_of(0, extent, from, whole, target);
        }
      Reservation& reservation = part.lease->reservation();
      pool().retire(reservation, target, earlier);
      all[i] = own;
      all[i].insert(all[i].end(), target.begin(), target.end());
      pool().map(reservation, own, {});
      part.lease->end_without_shared();
      MapOptions options;
      options.source = {&reservation, source};
      if (!target.empty()) pool().map(reservation, target, options);
    }
  } catch (...) {
    for (std::size_t i = 0; i < parts_.size(); ++i) pool().unkeep(parts_[i].lease->reservation(), all[i], {});
    throw;
  }
  keep_rows(wanted.length);
}

}  // namespace vmm
