// What a caller hears when copies of parked sequences were not good.
#pragma once

#include <cstdint>
#include <vector>

#include "base/error.h"
#include "base/types.h"

namespace vmm {

/// Tokens of sequences were lost, because no copy of them was good. Each of these has `first` tokens now,
/// which are as they were; everything else is as if the step had not been made.
class SequenceLost : public Error {
 public:
  struct Loss {
    std::uint32_t slot;
    Tokens first;  // that was lost
  };
  explicit SequenceLost(std::vector<Loss> losses);
  const std::vector<Loss>& losses() const noexcept { return losses_; }

 private:
  std::vector<Loss> losses_;
};

}  // namespace vmm
