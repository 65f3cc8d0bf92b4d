// A queue whose memory is there from the beginning, with room at both ends: nothing here allocates later.
#pragma once

#include <cstddef>
#include <vector>

namespace vmm {

/// The caller sees to it that no more than `room` are in at a time. Not thread-safe.
template <class T>
class BoundedRing {
 public:
  explicit BoundedRing(std::size_t room) : items_(room) {}

  bool empty() const noexcept { return size_ == 0; }
  std::size_t size() const noexcept { return size_; }
  const T& front() const noexcept { return items_[first_]; }
  void push_back(const T& item) noexcept { items_[wrapped(first_ + size_++)] = item; }
  void push_front(const T& item) noexcept {
    first_ = wrapped(first_ + items_.size() - 1);
    ++size_;
    items_[first_] = item;
  }
  T pop_front() noexcept {
    const T item = items_[first_];
    first_ = wrapped(first_ + 1);
    --size_;
    return item;
  }

 private:
  std::size_t wrapped(std::size_t place) const noexcept {
    return place < items_.size() ? place : place - items_.size();
  }

  std::vector<T> items_;
  std::size_t first_ = 0;
  std::size_t size_ = 0;
};

}  // namespace vmm
