#include "memory/physical_pages.h"

#include <algorithm>
#include <iterator>
#include <string>
#include <utility>

namespace vmm {
namespace {

bool legal(PhysicalState from, PhysicalState to) {
  using enum PhysicalState;
  static constexpr std::pair<PhysicalState, PhysicalState> transitions[] = {
      {absent, busy}, {busy, absent},    {busy, mapped},    {mapped, busy},     {busy, free},
      {free, busy},   {free, releasing}, {releasing, free}, {releasing, absent}};
  return std::ranges::find(transitions, std::pair(from, to)) != std::end(transitions);
}

bool in_use(PhysicalState state) { return state == PhysicalState::busy || state == PhysicalState::mapped; }

}  // namespace

Pages PhysicalPages::pages_per_run(Bytes page_bytes) const {
  if (!merges_neighbours_) return {1};
  return {std::max<std::uint64_t>(1, run_bytes_ / page_bytes)};
}

/// Leaves a run alone that has a page on its way out, because its place is taken until that is over. It also
/// leaves an exported page alone that the driver has refused to take back.
std::optional<RunId> PhysicalPages::take_from(std::vector<RunId>& list) {
  const auto found = std::find_if(list.rbegin(), list.rend(),
                                  [&](RunId id) { return run(id).releasing == 0 && !is_exported(run(id)); });
  if (found == list.rend()) return {};
  const RunId taken = *found;
  list.erase(std::next(found).base());
  Run& run = runs_[taken.value];
  run.owned = true;
  recycled_[run.page_bytes] -= run.page_bytes * run.free;
  return taken;
}

/// Only pages of drivers that do not merge neighbours are exported: their runs have one page.
bool PhysicalPages::is_exported(const Run& run) const {
  return run.pages == 1 && (*this)[run.first].exported;
}

RunId PhysicalPages::take_run(Bytes page_bytes, WindowRef window) {
  sort_out_empty_ones();
  std::optional<RunId> taken = take_from(warm_[page_bytes]);
  if (!taken) taken = take_empty_run(page_bytes);
  runs_[taken->value].window = window;
  return *taken;
}

std::optional<PhysicalPageId> PhysicalPages::takeable(RunId id) const {
  for (std::uint32_t i = 0; i < run(id).pages; ++i) {
    const PhysicalPageId page{run(id).first.value + i};
    const PhysicalState state = (*this)[page].state;
    if (state == PhysicalState::free || state == PhysicalState::absent) return page;
  }
  return {};
}

PhysicalPageId PhysicalPages::loose_page(Bytes page_bytes) {
  for (RunId id : loose_)
    if (run(id).page_bytes == page_bytes)
      if (const auto page = takeable(id)) return *page;
  loose_.reserve(loose_.size() + 1);
  loose_.push_back(take_run(page_bytes, {}));
  return run(loose_.back()).first;
}

RunId PhysicalPages::take_empty_run(Bytes page_bytes) {
  sort_out_empty_ones();
  if (const auto taken = take_from(empty_[page_bytes])) return *taken;
  return make_run(page_bytes);
}

/// Moves runs whose free pages were released to those that are empty.
void PhysicalPages::sort_out_empty_ones() {
  if (!std::exchange(emptied_, false)) return;
  for (auto& [page_bytes, warm] : warm_) {
    auto empty = std::stable_partition(warm.begin(), warm.end(), [&](RunId id) { return run(id).free != 0; });
    empty_[page_bytes].insert(empty_[page_bytes].end(), empty, warm.end());
    warm.erase(empty, warm.end());
  }
}

RunId PhysicalPages::make_run(Bytes page_bytes) {
  const auto count = static_cast<std::uint32_t>(pages_per_run(page_bytes).count);
  const RunId made{run_count()};
  next_place_ = round_up(Bytes{next_place_}, page_bytes).count;
  const PhysicalPageId first{size()};
  // This allocates everything first, because a run that is only half made would have no owner. The lists get
  // so much room that give_back_run() never allocates.
  if (runs_.size() == runs_.capacity()) runs_.reserve(2 * runs_.size() + 1);
  warm_[page_bytes].reserve(runs_.capacity());
  empty_[page_bytes].reserve(runs_.capacity());
  recycled_.try_emplace(page_bytes);
  pages_.resize(pages_.size() + count);
  for (std::uint32_t i = 0; i < count; ++i) pages_[first.value + i].run = made;
  Run& run = runs_.emplace_back();
  run.page_bytes = page_bytes;
  run.place = {next_place_};
  run.first = first;
  run.pages = count;
  run.owned = true;
  next_place_ += page_bytes.count * count;
  return made;
}

void PhysicalPages::give_back_run(RunId id) {
  Run& run = runs_.at(id.value);
  if (!run.owned || run.in_use != 0)
    throw InvariantViolation("run " + std::to_string(id.value) + " is given back while it is in use or free");
  run.owned = false;
  run.window = {};
  std::erase(loose_, id);
  recycled_[run.page_bytes] += run.page_bytes * run.free;
  (run.free != 0 ? warm_ : empty_)[run.page_bytes].push_back(id);
}

PhysicalPageId PhysicalPages::page_at(RunId run, std::uint64_t position) const {
  return {this->run(run).first.value + static_cast<std::uint32_t>(position)};
}

Place PhysicalPages::place_of(PhysicalPageId page) const {
  const Run& owner = run((*this)[page].run);
  return {owner.place.offset_bytes + owner.page_bytes.count * (page.value - owner.first.value)};
}

void PhysicalPages::move(PhysicalPageId id, PhysicalState to) {
  PhysicalPage& page = pages_.at(id.value);
  if (!legal(page.state, to))
    throw InvariantViolation("physical page " + std::to_string(id.value) + " cannot go from state " +
                             std::to_string(static_cast<int>(page.state)) + " to " +
                             std::to_string(static_cast<int>(to)));
  Run& run = runs_.at(page.run.value);
  if (page.state == PhysicalState::free) {
    --run.free;
    free_bytes_ -= run.page_bytes;
    least_free_ = std::min(least_free_, free_bytes_);
    if (!run.owned) recycled_[run.page_bytes] -= run.page_bytes;
    emptied_ |= !run.owned && run.free == 0;
  }
  if (to == PhysicalState::free) {
    ++freed_;
    ++run.free;
    free_bytes_ += run.page_bytes;
    if (!run.owned) recycled_[run.page_bytes] += run.page_bytes;
  }
  if (page.state == PhysicalState::releasing) {
    --run.releasing;
    --releasing_;
  }
  if (to == PhysicalState::releasing) {
    ++run.releasing;
    ++releasing_;
  }
  run.in_use += in_use(to);
  run.in_use -= in_use(page.state);
  page.state = to;
}

std::vector<PhysicalPageId> PhysicalPages::some_free(Bytes wanted, std::optional<bool> owned) const {
  std::vector<PhysicalPageId> out;
  Bytes found;
  if (free_bytes_.count == 0) return out;
  for (std::uint32_t i = 0; i < size() && found < wanted; ++i) {
    const Run& of = run(pages_[i].run);
    if (pages_[i].state != PhysicalState::free || owned.value_or(of.owned) != of.owned) continue;
    out.push_back({i});
    found += of.page_bytes;
  }
  return out;
}

}  // namespace vmm
