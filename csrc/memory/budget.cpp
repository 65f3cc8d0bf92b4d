#include "memory/budget.h"

#include <string>
#include <utility>

#include "base/error.h"

namespace vmm {

void Promises::add(Bytes more, Bytes maximum) {
  if (more > saturating_sub(maximum, sum_))
    throw InvalidArgument("guaranteed is " + std::to_string(more.count) + " bytes; expected at most " +
                          std::to_string(saturating_sub(maximum, sum_).count) + ", the budget of " +
                          std::to_string(maximum.count) + " less what other tenants are guaranteed");
  sum_ += more;
}

void Promises::require_kept(Bytes maximum) const {
  if (maximum < sum_)
    throw InvalidArgument("budget is " + std::to_string(maximum.count) + " bytes; expected at least " +
                          std::to_string(sum_.count) + ", which its tenants are guaranteed");
}

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
  promises_.require_kept(limit);
  limit_ = limit;
  if (taken_ > limit_) listeners_.tell(taken_ - limit_);
  tell_of_room();
}

void LocalBudget::promise(Bytes more) {
  std::lock_guard lock(mutex_);
  promises_.add(more, limit_);
}

void LocalBudget::end_promise(Bytes size) noexcept {
  std::lock_guard lock(mutex_);
  promises_.end(size);
}

void LocalBudget::tell_of_room() {
  if (taken_ < limit_ && std::exchange(refused_, false)) listeners_.tell({});
}

}  // namespace vmm
