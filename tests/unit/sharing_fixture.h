// Pages that are mapped at several addresses, and what must be left of them.
#pragma once

#include "base/error.h"
#include "fixtures.h"

namespace vmm {

/// Maps the memory of another lease's pages.
inline MapResult share(Lease& to, std::uint32_t first, const Lease& from, std::uint32_t source,
                       std::uint64_t count) {
  const PageRange range{{source}, {count}};
  MapOptions options;
  options.source = {&from.reservation(), std::span(&range, 1)};
  return map(to, first, count, options);
}

inline void unkeep(Lease& lease, std::uint32_t first, std::uint64_t count, const Fence& until = {}) {
  const PageRange range{{first}, {count}};
  lease.pool().unkeep(lease.reservation(), std::span(&range, 1), until);
  lease.pool().check();
}

/// What was given up is unmapped, as the pager would do.
inline void drain(TestPool& test) {
  test.pool->reclaiming().drain_retired();
  test.pool->check();
}

inline unsigned char& byte_of(const Lease& lease, std::uint32_t page) {
  return *bytes_at(lease, 64_KiB * page);
}

inline VirtualState state_of(const Lease& lease, std::uint32_t page) {
  return lease.reservation().table[{page}].state;
}

/// Each page begins with its number, and `more`.
inline void write_numbers(const Lease& lease, std::uint32_t first, std::uint32_t count, unsigned more = 0) {
  for (std::uint32_t i = first; i < first + count; ++i)
    byte_of(lease, i) = static_cast<unsigned char>(i + more);
}

/// Work that throws a DriverError at the n-th driver call, or at one of so many from there on. Returns
/// whether it did.
template <class Work>
bool fails(TestPool& test, std::int64_t n, Work work, std::int64_t times = 1) {
  test.faults->fail_at(n, times, Fault::error);
  bool failed = false;
  try {
    work();
  } catch (const DriverError&) {
    failed = true;
  }
  finish_work();
  test.pool->check();
  return failed;
}

/// All leases have ended: everything goes back.
inline void require_nothing_left(TestPool& test) {
  drain(test);
  test.pool->trim(1_GiB);
  test.pool->check();
  const PoolStats left = test.pool->stats();
  CHECK(left.created == Bytes{} && left.mapped == Bytes{} && left.saved == Bytes{});
  CHECK(left.reservations_leased == 0 && left.reservations_idle == 0);
  CHECK(test.budget->taken() == Bytes{});
}

/// Two leases. The first has four pages, of which the second has pages 1 and 2, at its pages 5 and 6.
struct Shared : TestPool {
  Shared() : TestPool(4_MiB), a(reserve(1_MiB)), b(reserve(1_MiB)) {
    map(*a, 0, 4);
    write_numbers(*a, 0, 4);
    share(*b, 5, *a, 1, 2);
    pool->check();
  }

  std::shared_ptr<Lease> a, b;
};

}  // namespace vmm
