// Where the bytes of a tier's slots are.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <stdexcept>

#include "base/types.h"

namespace vmm {

/// One page, to or from one slot.
struct SlotCopy {
  std::uint32_t slot = 0;
  std::uint64_t seed = 0;       // of the checksum
  std::byte* memory = nullptr;  // of the CPU's, or an address of the device
  std::uint32_t checksum = 0;   // an answer: of the bytes that were written, or that have come
};

inline Address address_of(const std::byte* memory) { return {reinterpret_cast<std::uintptr_t>(memory)}; }

/// What the device's driver has thrown, in its words.
class DeviceFailed : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

/// The workers of a store call it, several at once, for slots and memory that nobody else touches meanwhile.
/// The copies of one call are for slots side by side, in order. It throws where one of them failed
/// (std::system_error with an errno, if a system call did); then nothing is known of any. Where it throws
/// DeviceFailed, the slots are as they were.
class SlotMedium {
 public:
  virtual ~SlotMedium() = default;
  virtual void write(std::span<SlotCopy> copies) = 0;
  virtual void read(std::span<SlotCopy> copies) = 0;
  /// Each worker calls this once, before everything else.
  virtual void bind_thread() {}
  /// Whether the checksums are of the bytes, and not always 0.
  virtual bool checks() const { return true; }
  /// What the memory's addresses must be multiples of.
  virtual std::size_t alignment() const { return 1; }
};

}  // namespace vmm
