// Large pieces of host memory, for what is kept there.
#pragma once

#include <cstddef>
#include <memory>

#include "base/types.h"

namespace vmm {

/// Safe from any thread.
class SlabMemory {
 public:
  virtual ~SlabMemory() = default;
  /// So many bytes, aligned to 4 KiB at least. Throws DriverOutOfMemory.
  virtual std::byte* allocate(Bytes size) = 0;
  virtual void release(std::byte* slab, Bytes size) noexcept = 0;
  /// Whether the memory is locked, so that RLIMIT_MEMLOCK bounds it.
  virtual bool locks() const { return false; }
};

/// Plain memory, which the system commits where it is first touched. Forked children do not have it: what the
/// parent writes would else be copied for them, page by page.
std::shared_ptr<SlabMemory> plain_slabs();

}  // namespace vmm
