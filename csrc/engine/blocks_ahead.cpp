// What blocks will need: announced by their owner, mapped by the pager.
#include <algorithm>
#include <string>

#include "base/error.h"
#include "engine/blocks.h"
#include "engine/pager.h"

namespace vmm {

void Blocks::announce(Ids ids) {
  bool any = false;
  {
    const auto held = lock(ids);
    change(ids, Use::announced, true);
    // Also what was announced before: its pages may have been taken since for what is needed more.
    for (std::int32_t id : ids) {
      std::uint8_t& state = states_[static_cast<std::size_t>(id)];
      if ((state & (used | due)) != bit(Use::announced)) continue;
      state |= due;
      due_.push_back(static_cast<std::uint32_t>(id));
      any = true;
    }
  }
  if (any) range_->pager().notify(*this);
}

bool Blocks::paused() const {
  const auto held = lock();
  return range_->any_in_scratch();
}

/// Into at_hand_ and ahead_: blocks that lie in at least so many pages, if there are so many to map, in the
/// order in which they were asked for.
bool Blocks::take_due(Pages at_most) {
  const auto held = lock();
  at_hand_.clear();
  ahead_.clear();
  Pages pages;
  while (!range_->ended() && !due_.empty() && (at_hand_.empty() || pages < at_most)) {
    at_hand_.reserve(at_hand_.size() + 1);
    const std::uint32_t id = due_.pop_front();
    states_[id] &= static_cast<std::uint8_t>(~due);
    if ((states_[id] & used) != bit(Use::announced)) continue;  // dropped, or kept, by now
    at_hand_.push_back(id);
    for_each_range(id, [&](const PageRange& range) {
      ahead_.push_back(range);
      pages += range.count;
    });
  }
  return !at_hand_.empty();
}

/// What is at hand was asked for first, and stays first.
void Blocks::put_back() {
  const auto held = lock();
  for (std::size_t i = at_hand_.size(); i-- > 0;) {
    std::uint8_t& state = states_[at_hand_[i]];
    if ((state & (used | due)) != bit(Use::announced)) continue;
    state |= due;
    due_.push_front(at_hand_[i]);
  }
}

/// Nobody needs what was dropped while it was mapped. Whether all that is still announced is there.
bool Blocks::settle() {
  const auto held = lock();
  std::vector<PageRange> dropped;
  for (std::uint32_t id : at_hand_)
    if (range_->ended() || (states_[id] & used) == 0)
      for_each_range(id, [&](const PageRange& pages) { dropped.push_back(pages); });
  if (!dropped.empty()) range_->forget_unused(dropped);
  Pool::Needs needs(pool());
  return std::ranges::all_of(at_hand_, [&](std::uint32_t id) {
    return (states_[id] & used) != bit(Use::announced) || resident(needs, id);
  });
}

Ahead Blocks::map_ahead(Bytes batch, Pages) {
  std::lock_guard ahead(range_->ahead());
  if (paused()) return Ahead::failed;  // the scratch's end wakes the pager
  Pages at_most{std::max<std::uint64_t>(1, batch / range_->page_bytes())};
  MapOptions options;
  options.need = Need::announced;
  options.wait = false;
  const auto map = [&] {
    while (take_due(at_most)) {
      const MapResult result = map_what_fits(pool(), range_->reservation(), ahead_, options, at_most);
      pool().counters().pages_mapped_ahead.add(result.mapped.count);
      at_most -= result.mapped;
      const bool all_there = settle();
      if (at_most.count != 0 && all_there) continue;
      put_back();
      // What others are unmapping just now must be asked for again, but not at once.
      return at_most.count == 0 ? Ahead::more : Ahead::failed;
    }
    return Ahead::done;
  };
  return ahead_of_need(pool(), map, [&] {
    settle();
    put_back();
  });
}

}  // namespace vmm
