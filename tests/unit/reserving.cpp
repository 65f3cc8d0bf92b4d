// When the process has no memory of its own left, a reservation fails half way and leaves nothing behind.
#include <atomic>
#include <cstdlib>
#include <new>

#include "check.h"
#include "fixtures.h"

namespace {

std::atomic<std::int64_t> allocations_left{-1};  // negative: as many as are asked for

void* allocate(std::size_t size) {
  if (allocations_left.load() >= 0 && allocations_left.fetch_sub(1) == 0) throw std::bad_alloc();
  if (void* memory = std::malloc(size)) return memory;
  throw std::bad_alloc();
}

}  // namespace

void* operator new(std::size_t size) { return allocate(size); }
void operator delete(void* memory) noexcept { std::free(memory); }
void operator delete(void* memory, std::size_t) noexcept { std::free(memory); }

using namespace vmm;

namespace {

/// Calls work() with its first allocation failing, then with its second, and so on until it succeeds.
/// Returns how often it failed; `after` is called each time.
template <class Work, class After>
int fail_each_allocation(Work work, After after) {
  for (std::int64_t n = 0;; ++n) {
    bool failed = false;
    allocations_left = n;
    try {
      work();
    } catch (const std::bad_alloc&) {
      failed = true;
    }
    allocations_left = -1;
    if (!failed) return static_cast<int>(n);
    after();
  }
}

}  // namespace

TEST(a_reservation_that_fails_leaks_no_addresses) {
  for (bool zeroed : {false, true}) {
    TestPool test(4_MiB);
    const auto everything_is_free = [&] {
      CHECK(test.pool->stats().reservations_leased == 0 && test.pool->stats().reservations_idle == 0);
      test.reserve(8_GiB - 64_KiB);  // the whole arena, but for its alignment
      test.pool->check();
    };
    std::shared_ptr<Lease> lease;
    const int failures =
        fail_each_allocation([&] { lease = test.reserve(1_GiB, 1, 0, zeroed); }, everything_is_free);
    CHECK(failures >= 5);  // a lease, addresses, a reservation, its table, its place among the others
    lease.reset();
    everything_is_free();
  }
}

TEST(an_end_of_a_reservation_needs_no_memory_for_its_addresses) {
  const auto driver = make_driver();
  Arena arena(*driver, 1_MiB, 1_MiB, 64_KiB);
  auto a = arena.allocate(256_KiB, 64_KiB), b = arena.allocate(256_KiB, 64_KiB);
  auto c = arena.allocate(256_KiB, 64_KiB);
  allocations_left = 0;
  b.reset();  // between two others
  a.reset();
  c.reset();
  allocations_left = -1;
  CHECK(arena.allocate(1_MiB, 64_KiB).has_value());
}

TEST(a_map_that_fails_for_want_of_memory_changes_nothing) {
  TestPool test(4_MiB);
  auto lease = test.reserve(2_MiB);
  int failures = 0;
  const PageRange range{{2}, {12}};
  failures = fail_each_allocation([&] { test.pool->map(lease->reservation(), std::span(&range, 1), {}); },
                                  [&] {
                                    CHECK(test.pool->stats().mapped == Bytes{});
                                    CHECK(test.budget->taken() == test.pool->stats().created);
                                    test.pool->check();
                                  });
  CHECK(failures >= 5);
  CHECK(test.pool->stats().kept == 64_KiB * 12);
  test.pool->check();
}
