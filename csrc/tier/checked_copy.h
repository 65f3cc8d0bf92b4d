// Copies of pages that know what they copied.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

namespace vmm {

/// The checksum of so many bytes: CRC32C of the seed's eight bytes, the lowest first, and then of the bytes.
/// A seed that names the place and the occasion makes a checksum fail where the right bytes of another page,
/// or of another time, come back.
std::uint32_t checksum(const std::byte* from, std::size_t size, std::uint64_t seed);

/// Copies, and returns the checksum, in one pass: the bytes go past the caches, for a page that leaves or
/// comes is larger than they are good for. The memory must not overlap; what another thread writes to `from`
/// meanwhile makes the copy, or its checksum, worthless. Any size and alignment; aligned to 16 is faster.
std::uint32_t checked_copy(std::byte* to, const std::byte* from, std::size_t size, std::uint64_t seed);

struct CheckedCopy {
  std::byte* to = nullptr;  // null: only the checksum
  const std::byte* from = nullptr;
  std::uint64_t seed = 0;
  std::uint32_t checksum = 0;  // the answer
};

/// Several copies of one size, each as by checked_copy: faster where they are aligned and small, for four are
/// made at a time.
void checked_copies(std::span<CheckedCopy> copies, std::size_t size);

/// The same by the two ways there are, of which the above choose when they are first called. Both give the
/// same results; `copy_by_instruction` needs `has_crc_instruction`.
bool has_crc_instruction();
/// `to` may be null: then nothing is copied. `state` as in crc32c.h.
std::uint32_t copy_by_table(std::byte* to, const std::byte* from, std::size_t size, std::uint32_t state);
std::uint32_t copy_by_instruction(std::byte* to, const std::byte* from, std::size_t size,
                                  std::uint32_t state);

}  // namespace vmm
