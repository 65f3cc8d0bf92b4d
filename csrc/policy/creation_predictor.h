// Predicts how much physical memory should be created before anybody needs it.
#pragma once

#include <algorithm>

#include "base/types.h"

namespace vmm {

/// A pure policy. It is told how much had to be created at once, expects the most of that again, and forgets
/// it slowly.
class CreationPredictor {
 public:
  void created(Bytes at_once) { reserve_ = std::max(at_once, reserve_ - reserve_ / 64); }
  Bytes reserve() const { return reserve_; }

 private:
  Bytes reserve_;
};

}  // namespace vmm
