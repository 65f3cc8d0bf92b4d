// A queue whose memory is there from the beginning.
#pragma once

#include <cstddef>
#include <vector>

namespace vmm {

/// Pushing needs no memory, so it cannot fail; who pushes makes sure that there is room. Not thread-safe.
template <class T>
class BoundedRing {
 public:
  explicit BoundedRing(std::size_t capacity) : items_(capacity) {}

  bool empty() const { return size_ == 0; }
  std::size_t size() const { return size_; }
  const T& front() const { return items_[first_]; }
  void push(const T& item) noexcept { items_[(first_ + size_++) % items_.size()] = item; }
  T pop() noexcept {
    const T out = items_[first_];
    first_ = (first_ + 1) % items_.size();
    --size_;
    return out;
  }

 private:
  std::vector<T> items_;
  std::size_t first_ = 0;
  std::size_t size_ = 0;
};

}  // namespace vmm
