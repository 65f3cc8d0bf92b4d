// What the pool and the pager count. Each costs one relaxed atomic: they order nothing.
#pragma once

#include <atomic>
#include <cstdint>

namespace vmm {

class Counter {
 public:
  void add(std::uint64_t n = 1) noexcept { value_.fetch_add(n, std::memory_order_relaxed); }
  std::uint64_t get() const noexcept { return value_.load(std::memory_order_relaxed); }

 private:
  std::atomic<std::uint64_t> value_{0};
};

struct Counters {
  Counter stalls;                // times a caller waited because the pager was not ahead
  Counter stall_ns;              // and for how long in total
  Counter pages_mapped_ahead;    // mapped by the pager
  Counter pages_mapped_waiting;  // mapped while a caller waited
  Counter pages_created;
  Counter pages_released;
  Counter pages_unmapped;
  Counter pages_zeroed;
  Counter reservations_adopted;  // recycled whole, still mapped
  Counter reservations_made;
  Counter driver_failures;  // calls that failed, undone or to be tried again
};

}  // namespace vmm
