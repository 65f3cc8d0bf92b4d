// How much physical memory should lie created before anybody needs it.
#pragma once

#include <algorithm>

#include "base/types.h"

namespace vmm {

/// Pure: told what had to be created at once, it expects the most of it again, and forgets slowly.
class CreationPredictor {
 public:
  void created(Bytes at_once) { reserve_ = std::max(at_once, reserve_ - reserve_ / 64); }
  Bytes reserve() const { return reserve_; }

 private:
  Bytes reserve_;
};

}  // namespace vmm
