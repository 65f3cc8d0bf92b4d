#include "memory/last_uses.h"

#include <utility>

namespace vmm {

std::uint16_t LastUses::now() {
  refresh();
  Fence fence = epochs_.fence();
  if (fence.empty()) return none;
  // With too many, pages of different ages share one fence: the later.
  const bool again = !pending_.empty() && (pending_.back() == fence || pending_.size() == most_pending);
  if (again)
    pending_.back() = std::move(fence);
  else
    pending_.push_back(std::move(fence));
  return number_at(pending_.size() - 1);
}

bool LastUses::over(std::uint16_t number) const {
  return number == none || position_of(number) >= pending_.size();
}

bool LastUses::ends(std::uint16_t number, StreamHandle stream) const {
  return over(number) || !epochs_.waits_for_open_epoch(pending_[position_of(number)], stream);
}

bool LastUses::refresh() {
  while (!pending_.empty() && epochs_.complete(pending_.front())) {
    pending_.pop_front();
    first_ = number_at(1);
    ++ended_;
  }
  return !pending_.empty() && !epochs_.waits_for_open_epoch(pending_.front());
}

}  // namespace vmm
