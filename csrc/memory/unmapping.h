// What reclaiming does in the driver: it unmaps pages, and gives free ones back.
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
  /// The same, of pages that were not retired before: what the driver refuses the pager looks after.
  Bytes unmap_victims(Retirements victims);

  /// Gives those of the pages back to the driver that are still free. Returns how much that was. Throws only
  /// when it was nothing.
  Bytes release(std::vector<PhysicalPageId> pages);
  Bytes release_free(Bytes wanted);

 private:
  bool unmap_in_driver(Retirement& entry, std::exception_ptr& failure) noexcept;
  Bytes release(Releasing what);
  void release_exported(Releasing what) noexcept;

  Ground& ground_;
  Tables& tables_;
};

}  // namespace vmm
