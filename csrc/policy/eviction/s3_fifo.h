// S3-FIFO: three queues, in which a use only counts and nothing is moved.
#pragma once

#include <algorithm>

#include "policy/eviction/unit_queue.h"

namespace vmm {

/// J. Yang, Y. Zhang, Z. Qiu, Y. Yue and R. Vinayak, "FIFO queues are all you need for cache eviction",
/// SOSP 2023. Units come into a small FIFO; one that was used more than once there goes on to the main one,
/// another leaves as a ghost, and a ghost that is used comes into the main one at once. There, who was used
/// goes round again for each use, up to three.
class S3Fifo final : public EvictionPolicy {
 public:
  /// The paper's: a tenth of the memory for the small queue; as many ghosts as fit into the rest; a use
  /// beyond the third is not counted, and one beyond the first makes a unit stay.
  static constexpr std::uint64_t small_divisor = 10;
  static constexpr int most_uses = 3;
  static constexpr int uses_to_stay = 2;

  explicit S3Fifo(Bytes capacity)
      : most_small_(capacity / small_divisor), ghosts_(capacity - capacity / small_divisor) {}

  void access(UnitId unit, const UnitAccess& access) override {
    for (UnitQueue<int>* queue : {&small_, &main_})
      if (UnitQueue<int>::Entry* found = queue->find(unit)) {
        found->note = std::min(found->note + 1, most_uses);
        return queue->resize(unit, access.size);
      }
    (ghosts_.take(unit) ? main_ : small_).push_back(unit, access.size);
  }
  std::optional<UnitId> victim(Nanoseconds) override {
    while (!small_.empty() || !main_.empty()) {
      const bool from_small = main_.empty() || (!small_.empty() && small_.bytes() > most_small_);
      UnitQueue<int>& queue = from_small ? small_ : main_;
      const auto first = queue.front();
      if (first.note < (from_small ? uses_to_stay : 1)) return first.unit;
      queue.take(first.unit);
      main_.push_back(first.unit, first.size, from_small ? 0 : first.note - 1);
    }
    return std::nullopt;
  }
  void evicted(UnitId unit) override {
    if (const auto taken = small_.take(unit)) ghosts_.remember(unit, taken->size);
    main_.take(unit);
  }
  void forget(UnitId unit) override {
    small_.take(unit);
    main_.take(unit);
    ghosts_.take(unit);
  }
  bool holds(UnitId unit) const override { return small_.contains(unit) || main_.contains(unit); }
  std::size_t ghosts() const override { return ghosts_.count(); }

 private:
  const Bytes most_small_;
  UnitQueue<int> small_;  // each with its uses since it came here
  UnitQueue<int> main_;
  GhostQueue<> ghosts_;
};

}  // namespace vmm
