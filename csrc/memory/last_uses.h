// Until when the pages that nobody needs any more may still be in use: fences by number, so that a page
// remembers its own in two bytes.
#pragma once

#include <cstdint>
#include <vector>

#include "memory/fences.h"

namespace vmm {

/// Not thread-safe: the pool's lock guards it. Numbers come round again: then an old page may wait for a
/// fence that is not its own, for a while.
class LastUses {
 public:
  static constexpr std::uint16_t none = 0;  // never used

  explicit LastUses(Epochs& epochs) : epochs_(epochs), is_pending_(std::size_t{numbers} + 1) {}

  /// The number of a fence. Fences that are equal and not over share one.
  std::uint16_t number(Fence fence);
  bool over(std::uint16_t number) const { return !is_pending_[number]; }
  /// Whether it will be over without anybody's doing, but that `stream` goes on.
  bool ends(std::uint16_t number, StreamHandle stream) const;
  /// Calls visit(number) for each that was not over when last looked at.
  template <class Visit>
  void for_each_not_over(Visit visit) const {
    for (const Use& use : pending_) visit(use.number);
  }
  /// Finds out what is over; true while something else will be, without anybody's doing.
  bool refresh();
  /// How many are over.
  std::uint64_t ended() const noexcept { return ended_; }

 private:
  struct Use {
    std::uint16_t number;
    Fence fence;
  };
  static constexpr std::uint16_t numbers = 65535;  // from 1
  static constexpr std::size_t most_pending = 256;

  Epochs& epochs_;
  std::vector<Use> pending_;      // the oldest first
  std::vector<bool> is_pending_;  // by number
  std::uint64_t ended_ = 0;
  std::uint16_t last_number_ = none;
};

}  // namespace vmm
