// Replaces the global operator new by one that can be told to refuse an allocation. For one source of a
// program.
#pragma once

#include <atomic>
#include <cstdlib>
#include <new>

namespace vmm {

inline std::atomic<int> allocations{0};
inline std::atomic<int> refused_allocation{0};        // the one of this number; 0: none
inline thread_local bool counts_allocations = false;  // of other threads none is refused

/// Refuses the n-th allocation of `work`. Returns whether that threw std::bad_alloc.
template <class Work>
bool is_refused(int n, Work work) {
  bool refused = false;
  refused_allocation = allocations + n;
  counts_allocations = true;
  try {
    work();
  } catch (const std::bad_alloc&) {
    refused = true;
  }
  counts_allocations = false;
  refused_allocation = 0;
  return refused;
}

/// Whether the n-th allocation since `before` was made, or refused.
inline bool reached(int before, int n) { return allocations >= before + n; }

}  // namespace vmm

// Not inlined, or the compiler takes these for a mismatch.
[[gnu::noinline]] void* operator new(std::size_t size) {
  const bool refuse = vmm::counts_allocations && ++vmm::allocations == vmm::refused_allocation;
  void* made = refuse ? nullptr : std::malloc(size);
  if (made != nullptr) return made;
  throw std::bad_alloc();
}
[[gnu::noinline]] void* operator new(std::size_t size, const std::nothrow_t&) noexcept {
  return std::malloc(size);
}
[[gnu::noinline]] void operator delete(void* made) noexcept { std::free(made); }
[[gnu::noinline]] void operator delete(void* made, std::size_t) noexcept { std::free(made); }
