// One large driver reservation, cut into ranges: reserving is slow on GPUs, so it is done once per pool.
#pragma once

#include <cstdint>
#include <map>
#include <optional>

#include "memory/handles.h"

namespace vmm {

/// First fit over free ranges that merge with their neighbours. Not thread-safe: the pool's lock guards it.
class Arena {
 public:
  /// Halves the size until the driver agrees, down to `least`: address space may be limited (ulimit -v).
  Arena(Driver& driver, Bytes wanted, Bytes least, Bytes alignment);

  /// Empty when no free range is large enough. `alignment` is a power of two.
  std::optional<Address> allocate(Bytes size, Bytes alignment);
  void free(Address base, Bytes size);

  Bytes size() const noexcept { return range_.size(); }
  bool contains(Address address) const noexcept {
    return address >= range_.base() && address < range_.base() + range_.size();
  }

 private:
  ReservedRange range_;
  std::map<std::uintptr_t, Bytes> free_;
};

}  // namespace vmm
