// One large driver reservation, cut into ranges: reserving is slow on GPUs, so it is done once per pool.
#pragma once

#include <cstdint>
#include <map>
#include <optional>

#include "memory/handles.h"

namespace vmm {

class Arena;
using AddressRange = OwnedRange<Arena>;

/// First fit over free ranges that merge with their neighbours. Not thread-safe: the pool's lock guards it,
/// and with it the death of every AddressRange.
class Arena {
 public:
  /// Halves the size until the driver agrees, down to `least`: address space may be limited (ulimit -v).
  Arena(Driver& driver, Bytes wanted, Bytes least, Bytes alignment);

  /// Empty when no free range is large enough. `alignment` is a power of two.
  std::optional<AddressRange> allocate(Bytes size, Bytes alignment);

  Bytes size() const noexcept { return range_.size(); }
  bool contains(Address address) const noexcept { return range_.contains(address); }

 private:
  friend AddressRange;
  struct Piece {
    Bytes size;
    bool free;
  };

  void free_reservation(Address base, Bytes size) noexcept;

  OwnedRange<Driver> range_;
  std::map<std::uintptr_t, Piece> pieces_;  // all of the range, free or not, so that freeing needs no memory
};

}  // namespace vmm
