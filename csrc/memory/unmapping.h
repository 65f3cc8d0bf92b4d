// Unmaps pages in the driver, and gives free ones back to it, as reclaiming has decided.
#pragma once

#include <exception>
#include <vector>

#include "memory/ground.h"
#include "memory/tables.h"

namespace vmm {

/// Safe from any thread; called without the pool's lock.
class Unmapping {
 public:
  Unmapping(Ground& ground, Tables& tables) : ground_(ground), tables_(tables) {}

  /// Unmaps Retiring pages that are in transit. Those that the driver refuses are retired again. Returns what
  /// has become free. Throws only when nothing has, and the refusal is news.
  Bytes unmap(Retirements batch);
  /// The same for pages that nobody had retired before. The pager is woken to look after those that the
  /// driver refuses.
  Bytes unmap_victims(Retirements victims);

  /// Gives those of the pages back to the driver that are still free. Returns how much that was. Throws only
  /// when it was nothing.
  Bytes release(std::vector<PhysicalPageId> pages);
  /// Gives `wanted` bytes of free pages back, or all there are, and throws as release() does.
  Bytes release_free(Bytes wanted);

 private:
  bool unmap_in_driver(Retirement& entry, std::exception_ptr& failure) noexcept;
  Bytes release(Releasing what, int attempts = 1);

  Ground& ground_;
  Tables& tables_;
};

}  // namespace vmm
