// Numbers that wait in a line, at both ends of which there is always room: nothing here allocates later.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace vmm {

/// The caller sees to it that no more than `room` are in at a time.
class IdRing {
 public:
  explicit IdRing(std::size_t room) : ids_(room) {}

  bool empty() const noexcept { return size_ == 0; }
  void push_back(std::uint32_t id) noexcept { ids_[wrapped(first_ + size_++)] = id; }
  void push_front(std::uint32_t id) noexcept {
    first_ = wrapped(first_ + ids_.size() - 1);
    ++size_;
    ids_[first_] = id;
  }
  std::uint32_t pop_front() noexcept {
    const std::uint32_t id = ids_[first_];
    first_ = wrapped(first_ + 1);
    --size_;
    return id;
  }

 private:
  std::size_t wrapped(std::size_t place) const noexcept {
    return place < ids_.size() ? place : place - ids_.size();
  }

  std::vector<std::uint32_t> ids_;
  std::size_t first_ = 0;
  std::size_t size_ = 0;
};

}  // namespace vmm
