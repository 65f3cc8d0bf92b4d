// Until when the pages that nobody needs any more may still be in use: fences by number, so that a page
// remembers its own in two bytes.
#pragma once

#include <cstdint>
#include <deque>

#include "memory/fences.h"

namespace vmm {

/// Not thread-safe: the pool's lock guards it. Numbers come round again: then an old page may wait for a
/// fence that is not its own, for a while.
class LastUses {
 public:
  static constexpr std::uint16_t none = 0;  // never used

  explicit LastUses(Epochs& epochs) : epochs_(epochs) {}

  /// A number for all work until now.
  std::uint16_t now();
  bool over(std::uint16_t number) const;
  /// Whether it will be over without anybody's doing, but that `stream` goes on.
  bool ends(std::uint16_t number, StreamHandle stream) const;
  /// Calls visit(number) for each that was not over when last looked at.
  template <class Visit>
  void for_each_not_over(Visit visit) const {
    for (std::size_t i = 0; i < pending_.size(); ++i) visit(number_at(i));
  }
  /// Finds out what is over; true while something else will be, without anybody's doing.
  bool refresh();
  /// How many are over.
  std::uint64_t ended() const noexcept { return ended_; }

 private:
  static constexpr std::uint16_t numbers = 65535;  // from 1
  static constexpr std::size_t most_pending = 1024;

  std::size_t position_of(std::uint16_t number) const {
    return static_cast<std::size_t>(numbers + number - first_) % numbers;
  }
  std::uint16_t number_at(std::size_t position) const {
    return static_cast<std::uint16_t>((first_ - 1 + position) % numbers + 1);
  }

  Epochs& epochs_;
  std::deque<Fence> pending_;
  std::uint64_t ended_ = 0;
  std::uint16_t first_ = 1;  // the number of the first pending
};

}  // namespace vmm
