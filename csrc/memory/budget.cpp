#include "memory/budget.h"

#include <utility>

namespace vmm {

Budget::ListenerId LocalBudget::listen(Listener listener) {
  std::lock_guard lock(mutex_);
  return listeners_.add(std::move(listener));
}

void LocalBudget::stop_listening(ListenerId id) {
  std::lock_guard lock(mutex_);
  listeners_.remove(id);
}

bool LocalBudget::take(Bytes size, ListenerId taker, bool press) {
  std::lock_guard lock(mutex_);
  if (taken_ <= limit_ && size <= limit_ - taken_) {
    taken_ += size;
    return true;
  }
  refused_ = true;
  if (press && size <= limit_) listeners_.tell(taken_ + size - limit_, taker);
  return false;
}

void LocalBudget::give_back(Bytes size) noexcept {
  std::lock_guard lock(mutex_);
  taken_ -= size;
  tell_of_room();
}

Bytes LocalBudget::limit() const {
  std::lock_guard lock(mutex_);
  return limit_;
}

Bytes LocalBudget::taken() const {
  std::lock_guard lock(mutex_);
  return taken_;
}

void LocalBudget::set_limit(Bytes limit) {
  std::lock_guard lock(mutex_);
  limit_ = limit;
  if (taken_ > limit_) listeners_.tell(taken_ - limit_);
  tell_of_room();
}

void LocalBudget::tell_of_room() {
  if (taken_ < limit_ && std::exchange(refused_, false)) listeners_.tell({});
}

}  // namespace vmm
