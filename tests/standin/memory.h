// All device memory: one memfd, of which every device owns a stretch. A page is an offset in it.
#pragma once

#include <cstdint>
#include <map>
#include <optional>

namespace standin {

using Address = std::uint64_t;
using Size = std::uint64_t;

constexpr Size host_page = 4096;

class Memory {
 public:
  static constexpr int devices = 16;
  static constexpr int host = devices;  // the stretch of pages that lie in host memory

  /// Free bytes nearest to the start, so that neighbouring creates are neighbours and their mappings merge.
  std::optional<Size> take(int device, Size size);
  void give(int device, Size offset, Size size);
  /// Commits fresh bytes: 0xFF, which is NaN in every float type.
  bool fill(Size offset, Size size, bool poison, int file = -1) const;

  /// 0 if it cannot be had. The address is a multiple of `alignment` plus `shift`.
  static Address reserve(Size size, Size alignment, Size shift, Address hint);
  static void unreserve(Address start, Size size);
  /// Nothing, that faults when touched, in place of what is there.
  static bool clear(Address start, Size size);
  /// `file`: another than that of all devices.
  bool map(Address start, Size size, Size offset, int file = -1) const;
  static bool protect(Address start, Size size, bool readable, bool writable);

 private:
  int file() const;
  mutable int fd_ = -1;
  std::map<int, std::map<Size, Size>> free_;  // by device: offset -> size
};

}  // namespace standin
