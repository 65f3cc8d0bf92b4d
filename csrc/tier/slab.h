// One piece of host memory, which ends with its owner.
#pragma once

#include <memory>
#include <utility>

#include "driver/slab_memory.h"

namespace vmm {

class Slab {
 public:
  Slab(std::shared_ptr<SlabMemory> memory, Bytes size)
      : memory_(std::move(memory)), start_(memory_->allocate(size)), size_(size) {}
  Slab(Slab&& other) noexcept
      : memory_(std::move(other.memory_)), start_(std::exchange(other.start_, nullptr)), size_(other.size_) {}
  Slab& operator=(Slab&&) = delete;
  ~Slab() {
    if (start_ != nullptr) memory_->release(start_, size_);
  }

  std::byte* start() const { return start_; }

 private:
  std::shared_ptr<SlabMemory> memory_;
  std::byte* start_;
  Bytes size_;
};

}  // namespace vmm
