#include "memory/last_uses.h"

#include <algorithm>
#include <utility>

namespace vmm {
namespace {

/// Makes `fence` wait for `other`, too.
void include(Fence& fence, const Fence& other) {
  for (const StreamEpoch& entry : other) {
    const auto found = std::ranges::lower_bound(fence, entry.stream, {}, &StreamEpoch::stream);
    if (found == fence.end() || found->stream != entry.stream)
      fence.insert(found, entry);
    else
      found->epoch = std::max(found->epoch, entry.epoch);
  }
}

}  // namespace

/// The next that is not pending, and that no page has, if there is one.
std::uint16_t LastUses::unused_number() const {
  std::uint16_t not_pending = none, at = last_number_;
  for (std::uint32_t i = 0; i < numbers; ++i) {
    at = at == numbers ? 1 : at + 1;
    if (is_pending_[at]) continue;
    if (mapped_.last_used(at).count == 0) return at;
    if (not_pending == none) not_pending = at;
  }
  return not_pending;
}

std::uint16_t LastUses::number(Fence fence) {
  refresh();
  if (fence.empty()) return none;
  const auto equal = std::ranges::find(pending_, fence, &Use::fence);
  if (equal != pending_.end()) return equal->number;
  if (pending_.size() == most_pending) {  // Pages of different ages share one number, which waits for both.
    include(pending_.back().fence, fence);
    return pending_.back().number;
  }
  last_number_ = unused_number();
  pending_.push_back({last_number_, std::move(fence)});
  is_pending_[last_number_] = true;
  return last_number_;
}

std::uint16_t LastUses::number_of_all(std::span<const std::uint16_t> shared) {
  if (shared.size() == 1) return shared.front();
  Fence all;
  for (const Use& use : pending_)
    if (std::ranges::find(shared, use.number) != shared.end()) include(all, use.fence);
  return number(std::move(all));
}

bool LastUses::ends_but_for(std::uint16_t number, std::optional<StreamHandle> stream) const {
  const auto found = std::ranges::find(pending_, number, &Use::number);
  return found == pending_.end() || !epochs_.waits_for_open_epoch(found->fence, stream);
}

bool LastUses::refresh() {
  bool coming = false;
  const std::size_t before = pending_.size();
  std::erase_if(pending_, [&](const Use& use) {
    const bool over = epochs_.complete(use.fence);
    if (over)
      is_pending_[use.number] = false;
    else if (!coming)
      coming = !epochs_.waits_for_open_epoch(use.fence);
    return over;
  });
  ended_ += before - pending_.size();
  return coming;
}

}  // namespace vmm
