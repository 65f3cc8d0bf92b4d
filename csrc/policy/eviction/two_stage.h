// What 2Q and S3-FIFO have in common: new units come into a queue of their own.
#pragma once

#include "policy/eviction/unit_queue.h"

namespace vmm {

/// A unit that leaves from the queue of the new ones is remembered as a ghost; one that leaves from the main
/// queue is not.
template <class Note = Nothing>
class TwoStage : public EvictionPolicy {
 public:
  void evicted(UnitId unit) override {
    if (const auto taken = new_.take(unit)) ghosts_.remember(unit, taken->size);
    main_.take(unit);
  }
  void forget(UnitId unit) override {
    new_.take(unit);
    main_.take(unit);
    ghosts_.take(unit);
  }
  bool holds(UnitId unit) const override { return new_.contains(unit) || main_.contains(unit); }
  std::size_t ghosts() const override { return ghosts_.count(); }

 protected:
  TwoStage(Bytes most_new, Bytes most_ghosts) : most_new_(most_new), ghosts_(most_ghosts) {}

  bool empty() const { return new_.empty() && main_.empty(); }
  /// Whether the next to leave, or to be looked at, is a new one: where these have more than their part.
  bool next_is_new() const { return main_.empty() || (!new_.empty() && new_.bytes() > most_new_); }

  const Bytes most_new_;
  UnitQueue<Note> new_;
  UnitQueue<Note> main_;
  GhostQueue<> ghosts_;
};

}  // namespace vmm
