#include "memory/budget.h"

#include <utility>

namespace vmm {

Budget::ListenerId Budget::listen(Listener listener) {
  std::lock_guard lock(mutex_);
  listeners_.emplace(next_id_, std::move(listener));
  return next_id_++;
}

void Budget::stop_listening(ListenerId id) {
  std::lock_guard lock(mutex_);
  listeners_.erase(id);
}

bool Budget::take(Bytes size, ListenerId taker, bool press) {
  std::lock_guard lock(mutex_);
  if (taken_ <= limit_ && size <= limit_ - taken_) {
    taken_ += size;
    return true;
  }
  refused_ = true;
  if (press && size <= limit_) ask(taken_ + size - limit_, taker);
  return false;
}

void Budget::give_back(Bytes size) noexcept {
  std::lock_guard lock(mutex_);
  taken_ -= size;
  tell_of_room();
}

Bytes Budget::limit() const {
  std::lock_guard lock(mutex_);
  return limit_;
}

Bytes Budget::taken() const {
  std::lock_guard lock(mutex_);
  return taken_;
}

void Budget::set_limit(Bytes limit) {
  std::lock_guard lock(mutex_);
  limit_ = limit;
  if (taken_ > limit_) ask(taken_ - limit_, 0);
  tell_of_room();
}

void Budget::tell_of_room() {
  if (taken_ < limit_ && std::exchange(refused_, false)) ask({}, 0);
}

void Budget::ask(Bytes size, ListenerId except) {
  for (auto& [id, listener] : listeners_)
    if (id != except) listener(size);
}

}  // namespace vmm
