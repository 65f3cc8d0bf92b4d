// When the process has no memory of its own left, a reservation fails half way and leaves nothing behind.
#include "check.h"
#include "fixtures.h"
#include "refused_allocations.h"

using namespace vmm;

namespace {

/// Calls work() with its first allocation failing, then with its second, and so on until it succeeds.
/// Returns how often it failed; `after` is called each time.
template <class Work, class After>
int fail_each_allocation(Work work, After after) {
  int failures = 0;
  while (is_refused(failures + 1, work)) {
    ++failures;
    after();
  }
  return failures;
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
  CHECK(!is_refused(1, [&] {
    b.reset();  // between two others
    a.reset();
    c.reset();
  }));
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
