// S3-FIFO: three queues, in which a use only counts and nothing is moved.
#pragma once

#include <algorithm>

#include "policy/eviction/two_stage.h"

namespace vmm {

/// J. Yang, Y. Zhang, Z. Qiu, Y. Yue and R. Vinayak, "FIFO queues are all you need for cache eviction",
/// SOSP 2023. Units come into a small FIFO; one that was used more than once there goes on to the main one,
/// another leaves as a ghost, and a ghost that is used comes into the main one at once. There, who was used
/// goes round again for each use, up to three.
class S3Fifo final : public TwoStage<int> {  // each with its uses since it came where it is
 public:
  /// The paper's: a tenth of the memory for the small queue; as many ghosts as fit into the rest; a use
  /// beyond the third is not counted, and one beyond the first makes a unit stay.
  static constexpr std::uint64_t small_divisor = 10;
  static constexpr int most_uses = 3;
  static constexpr int uses_to_stay = 2;

  explicit S3Fifo(Bytes capacity) : TwoStage(capacity / small_divisor, capacity - capacity / small_divisor) {}

  void access(UnitId unit, const UnitAccess& access) override {
    for (UnitQueue<int>* queue : {&new_, &main_})
      if (UnitQueue<int>::Entry* found = queue->find(unit)) {
        found->note = std::min(found->note + 1, most_uses);
        return queue->resize(unit, access.size);
      }
    (ghosts_.take(unit) ? main_ : new_).push_back(unit, access.size);
  }
  std::optional<UnitId> victim(Nanoseconds) override {
    while (!empty()) {
      const bool is_new = next_is_new();
      UnitQueue<int>& queue = is_new ? new_ : main_;
      const auto first = queue.front();
      if (first.note < (is_new ? uses_to_stay : 1)) return first.unit;
      queue.take(first.unit);
      main_.push_back(first.unit, first.size, is_new ? 0 : first.note - 1);
    }
    return std::nullopt;
  }
};

}  // namespace vmm
