// Says until when pages that nobody needs any more may still be in use. Fences have numbers here, so that a
// page remembers its own in two bytes.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include "memory/fences.h"
#include "memory/mapped_bytes.h"

namespace vmm {

/// Not thread-safe: the pool's lock guards it. Numbers are used again, but none while a page that `mapped`
/// counts has it: only where pages have all of them may an old page wait for a fence that is not its own.
class LastUses {
 public:
  static constexpr std::uint16_t none = 0;  // never used

  LastUses(Epochs& epochs, const MappedBytes& mapped)
      : epochs_(epochs), mapped_(mapped), is_pending_(std::size_t{numbers} + 1) {}

  /// The number of a fence. Fences that are equal and not over share one.
  std::uint16_t number(Fence fence);
  /// The number of a fence that is complete when the fences of all these are.
  std::uint16_t number_of_all(std::span<const std::uint16_t> shared);
  /// Whether the fence is complete, as far as the last refresh() has seen.
  bool over(std::uint16_t number) const { return !is_pending_[number]; }
  /// Whether the fence will be complete by itself; where `stream` is given, once its next epoch has begun.
  bool ends(std::uint16_t number, StreamHandle stream) const { return ends_but_for(number, stream); }
  bool ends(std::uint16_t number) const { return ends_but_for(number, {}); }
  /// Calls visit(number) for each that was not over when last looked at.
  template <class Visit>
  void for_each_not_over(Visit visit) const {
    for (const Use& use : pending_) visit(use.number);
  }
  /// Finds out which fences are complete. Returns true while another one will be by itself.
  bool refresh();
  /// How many fences have become complete so far.
  std::uint64_t ended() const noexcept { return ended_; }

 private:
  struct Use {
    std::uint16_t number;
    Fence fence;
  };
  std::uint16_t unused_number() const;
  bool ends_but_for(std::uint16_t number, std::optional<StreamHandle> stream) const;

  static constexpr std::uint16_t numbers = 65535;  // from 1
  static constexpr std::size_t most_pending = 256;

  Epochs& epochs_;
  const MappedBytes& mapped_;
  std::vector<Use> pending_;      // the oldest first
  std::vector<bool> is_pending_;  // by number
  std::uint64_t ended_ = 0;
  std::uint16_t last_number_ = none;
};

}  // namespace vmm
