#include "engine/blocks.h"

#include <algorithm>
#include <bit>
#include <limits>
#include <string>
#include <utility>

#include "base/error.h"
#include "engine/pager.h"

namespace vmm {
namespace {

void check_shape(const Range& range, const BlocksShape& shape) {
  const Bytes size = range.lease()->size();
  if (shape.count == 0 || shape.count > std::numeric_limits<std::int32_t>::max())
    throw InvalidArgument("count is " + std::to_string(shape.count) + "; expected 1 to 2^31 - 1 blocks");
  if (shape.stride.count == 0 || shape.stride.count > size.count / shape.count)
    throw InvalidArgument("stride is " + std::to_string(shape.stride.count) +
                          "; expected at least 1 byte, and " + std::to_string(shape.count) +
                          " blocks of it in the range of " + std::to_string(size.count) + " bytes");
  if (shape.starts.empty()) throw InvalidArgument("starts is empty; expected where block 0 begins");
  const Bytes last = size - shape.stride * shape.count;
  for (std::size_t i = 0; i < shape.starts.size(); ++i)
    if (shape.starts[i] > last)
      throw InvalidArgument("starts[" + std::to_string(i) + "] is " + std::to_string(shape.starts[i].count) +
                            "; expected at most " + std::to_string(last.count) +
                            ", or the last block would end beyond the range");
}

std::vector<Lane> lanes_of(const Range& range, const BlocksShape& shape) {
  const Bytes page = range.page_bytes();
  std::vector<Lane> lanes;
  for (Bytes start : shape.starts) {
    auto lane = std::ranges::find(lanes, start % page, &Lane::into_page);
    if (lane == lanes.end()) {
      lanes.emplace_back(start % page, shape.stride, shape.count,
                         static_cast<unsigned>(std::countr_zero(page.count)));
      lane = std::prev(lanes.end());
    }
    lane->add_stretch(static_cast<std::uint32_t>(start / page));
  }
  return lanes;
}

}  // namespace

Blocks::Blocks(std::shared_ptr<Range> range, const BlocksShape& shape)
    : range_((check_shape(*range, shape), std::move(range))),
      lanes_(lanes_of(*range_, shape)),
      states_(shape.count),
      due_(shape.count) {}

std::shared_ptr<Blocks> Blocks::make(std::shared_ptr<Range> range, const BlocksShape& shape) {
  range->require_open();
  return share(std::make_shared<Blocks>(std::move(range), shape));
}

/// Takes the lock. In a forked child nobody may: a thread that is not there may have held it.
std::unique_lock<Mutex> Blocks::lock() const {
  pool().fork_guard().require_parent("this range");
  return std::unique_lock(range_->mutex());
}

/// Takes the lock, for a call that names these.
std::unique_lock<Mutex> Blocks::lock(Ids ids) const {
  std::unique_lock held = lock();
  range_->require_open();
  for (std::size_t i = 0; i < ids.size(); ++i)
    if (ids[i] < 0 || static_cast<std::size_t>(ids[i]) >= states_.size())
      throw InvalidArgument("ids[" + std::to_string(i) + "] is " + std::to_string(ids[i]) +
                            "; expected 0 to " + std::to_string(states_.size() - 1));
  return held;
}

// The lock is held in what does not take it.

bool Blocks::touches_flying(Ids ids) const {
  if (!range_->any_flying()) return false;
  bool any = false;
  for (std::int32_t id : ids)
    for_each_range(static_cast<std::uint32_t>(id),
                   [&](const PageRange& pages) { any = any || range_->flying(pages); });
  return any;
}

void Blocks::refuse_in_scratch(Ids ids) const {
  for (std::int32_t id : ids)
    for_each_range(static_cast<std::uint32_t>(id), [&](const PageRange& pages) {
      if (range_->in_scratch(pages))
        throw InvalidArgument("ids: block " + std::to_string(id) + " is in a scratch; end the scratch first");
    });
}

std::shared_ptr<Scratch> Blocks::scratch(Ids ids) const {
  std::vector<PageRange> pages;
  {
    const auto held = lock(ids);
    for (std::int32_t id : ids)
      for_each_range(static_cast<std::uint32_t>(id), [&](const PageRange& range) { pages.push_back(range); });
  }
  return Scratch::open(range_, std::move(pages));
}

void Blocks::set_use(std::int32_t id, Use use, bool in) noexcept {
  std::uint8_t& state = states_[static_cast<std::size_t>(id)];
  std::uint64_t unused = 0;
  auto number = [&]() -> std::uint64_t& {
    if (has(id, Use::kept)) return kept_;
    return has(id, Use::announced) ? announced_ : unused;
  };
  --number();
  state = static_cast<std::uint8_t>(in ? state | bit(use) : state & ~bit(use));
  ++number();
  for (Lane& lane : lanes_) lane.count(static_cast<std::uint64_t>(id), use, in);
}

/// Sets or ends this use of the blocks. Which blocks that changed is in changed_ then, and in pages_ which
/// pages got their first such user, or lost their last. What throws has changed nothing.
void Blocks::change(Ids ids, Use use, bool in) {
  changed_.clear();
  changed_.reserve(ids.size());
  reverted_.reserve(ids.size());
  for (Lane& lane : lanes_) lane.begin(ids.size());
  // What is kept need not be announced, unless keeping it may yet fail.
  const bool not_kept = in && use == Use::announced && !range_->any_flying();
  for (std::int32_t id : ids) {
    if (has(id, use) == in || (not_kept && has(id, Use::kept))) continue;
    set_use(id, use, in);
    changed_.push_back(id);
  }
  for (Lane& lane : lanes_) lane.end();
  pages_.clear();
  try {
    std::size_t most = 0;
    for (const Lane& lane : lanes_) most += lane.pages_changed();
    pages_.reserve(most);
  } catch (...) {
    for (Lane& lane : lanes_) lane.begin(changed_.size());
    for (std::int32_t id : changed_) set_use(id, use, !in);
    throw;
  }
  for (const Lane& lane : lanes_)
    lane.for_each_changed([&](const PageRange& pages) { range_->count(pages, use, in, pages_); });
}

/// Takes back what change() has just set.
void Blocks::revert(Use use) {
  reverted_.swap(changed_);
  change(reverted_, use, false);
}

bool Blocks::try_keep(Ids ids) {
  if (touches_flying(ids)) return false;
  change(ids, Use::kept, true);
  if (range_->keep_resident(pages_)) return true;
  revert(Use::kept);
  return false;
}

bool Blocks::keep_if_ready(Ids ids) {
  const auto held = lock(ids);
  return try_keep(ids);
}

std::vector<std::int32_t> Blocks::keep_ready(Ids ids) {
  std::vector<std::int32_t> kept;
  kept.reserve(ids.size());
  const auto held = lock(ids);
  if (try_keep(ids)) {
    kept.assign(ids.begin(), ids.end());
    return kept;
  }
  for (const std::int32_t& id : ids)
    if (try_keep(Ids(&id, 1))) kept.push_back(id);
  return kept;
}

void Blocks::keep(Ids ids) {
  if (keep_if_ready(ids)) return;
  std::lock_guard keeping(range_->keeping());  // who was mapping some of these has ended
  std::vector<std::int32_t> added;
  std::vector<PageRange> missing;
  added.reserve(ids.size());
  {
    const auto held = lock(ids);
    if (try_keep(ids)) return;
    refuse_in_scratch(ids);
    // Counted before they are mapped, so that no drop of a neighbour takes them in between.
    change(ids, Use::kept, true);
    try {
      missing = pages_;
    } catch (...) {
      revert(Use::kept);
      throw;
    }
    added.assign(changed_.begin(), changed_.end());
    range_->set_flying(missing, true);
  }
  try {
    map_counting_stalls(pool(), [&] { return pool().map(range_->reservation(), missing, {}); });
  } catch (...) {
    const auto held = lock();
    range_->set_flying(missing, false);
    change(added, Use::kept, false);
    // Work of a neighbour that was dropped meanwhile may still be on a page that both have shared.
    range_->give_up(pages_, pool().epochs().fence(), false);
    throw;
  }
  const auto held = lock();
  range_->set_flying(missing, false);
}

void Blocks::drop_locked(Ids ids, const Fence& until, bool unmap) {
  change(ids, Use::announced, false);
  ended_.assign(pages_.begin(), pages_.end());
  change(ids, Use::kept, false);
  ended_.insert(ended_.end(), pages_.begin(), pages_.end());
  range_->give_up(ended_, until, unmap);
}

void Blocks::drop(Ids ids, const Fence& until, bool unmap) {
  {
    std::unique_lock keeping(range_->keeping(), std::defer_lock);
    auto held = lock(ids);
    if (touches_flying(ids)) {  // keeping these may yet fail, or else comes before
      held.unlock();
      keeping.lock();
      held = lock(ids);
    }
    drop_locked(ids, until, unmap);
  }
  if (unmap) range_->pager().wake();
  range_->give_back_if_closed();
}

std::vector<std::uint8_t> Blocks::ready(Ids ids) {
  std::vector<std::uint8_t> out;
  out.reserve(ids.size());
  const auto held = lock(ids);
  Pool::Needs needs(pool());
  for (std::int32_t id : ids) out.push_back(resident(needs, static_cast<std::uint32_t>(id)));
  return out;
}

bool Blocks::resident(Pool::Needs& needs, std::uint32_t id) const {
  bool all = true;
  for_each_range(id, [&](const PageRange& pages) {
    all = all && needs.resident(range_->reservation(), pages) == pages.count;
  });
  return all;
}

std::uint64_t Blocks::kept() const {
  const auto held = lock();
  return range_->ended() ? 0 : kept_;
}

std::uint64_t Blocks::announced() const {
  const auto held = lock();
  return range_->ended() ? 0 : announced_;
}

void Blocks::close() noexcept {
  try {
    std::vector<std::int32_t> all;
    {
      const auto held = lock();
      if (range_->ended()) return;
      for (std::size_t id = 0; id < states_.size(); ++id)
        if ((states_[id] & used) != 0) all.push_back(static_cast<std::int32_t>(id));
    }
    if (!all.empty()) drop(all, pool().epochs().fence());
  } catch (const Closed&) {  // the range's end has given back all
  } catch (const std::exception& error) {
    pool().log().write(LogLevel::warning, std::string("dropping all blocks: ") + error.what());
  }
}

}  // namespace vmm
