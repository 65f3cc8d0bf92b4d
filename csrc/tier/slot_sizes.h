// What every store asks of its sizes.
#pragma once

#include <algorithm>
#include <cstddef>
#include <limits>
#include <string>

#include "base/error.h"
#include "base/types.h"

namespace vmm {

/// What pages, and direct calls for files, are aligned to.
inline constexpr Bytes slot_alignment = 4_KiB;

/// How many slots side by side a worker moves in one call: so many that what a call costs does not show, and
/// more than 2 MiB at a time was no faster.
inline constexpr std::size_t most_merged = 64;
inline std::size_t merged_slots(Bytes slot) { return std::clamp<std::size_t>(2_MiB / slot, 1, most_merged); }

/// How many slots the capacity holds. Throws InvalidArgument, naming the argument that is wrong.
inline std::uint64_t slots_within(Bytes capacity, Bytes slot) {
  if (slot.count == 0 || slot.count % slot_alignment.count != 0)
    throw InvalidArgument("slot: must be a positive multiple of 4096 bytes, not " +
                          std::to_string(slot.count));
  const std::uint64_t slots = capacity / slot;
  if (slots == 0)
    throw InvalidArgument("capacity: " + std::to_string(capacity.count) +
                          " bytes are less than one page of " + std::to_string(slot.count));
  if (slots >= std::numeric_limits<std::uint32_t>::max())
    throw InvalidArgument("capacity: " + std::to_string(capacity.count) + " bytes are too many pages of " +
                          std::to_string(slot.count));
  return slots;
}

}  // namespace vmm
