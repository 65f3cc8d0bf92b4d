// The checksums of slots that a medium has moved.
#pragma once

#include <array>
#include <span>

#include "base/types.h"
#include "tier/checked_copy.h"
#include "tier/slot_medium.h"
#include "tier/slot_sizes.h"

namespace vmm {

/// Makes the copy that `to_copy` says for each of at most `most_merged`, and answers with its checksum.
template <class ToCopy>
void answer_with_checksums(std::span<SlotCopy> copies, Bytes slot, ToCopy to_copy) {
  std::array<CheckedCopy, most_merged> all;
  for (std::size_t i = 0; i < copies.size(); ++i) all.at(i) = to_copy(copies[i]);
  checked_copies(std::span(all).first(copies.size()), slot.count);
  for (std::size_t i = 0; i < copies.size(); ++i) copies[i].checksum = all[i].checksum;
}

}  // namespace vmm
