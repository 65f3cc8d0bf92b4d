// One physical page at several addresses.
#include <array>

#include "base/error.h"
#include "check.h"
#include "refused_allocations.h"
#include "sharing_fixture.h"

using namespace vmm;

TEST(an_alias_shows_the_same_bytes_and_counts_once) {
  Shared test;
  CHECK(byte_of(*test.b, 5) == 1 && byte_of(*test.b, 6) == 2);
  byte_of(*test.b, 6) = 77;
  CHECK(byte_of(*test.a, 2) == 77);
  const PoolStats stats = test.pool->stats();
  CHECK(stats.created == 256_KiB && stats.mapped == 256_KiB && stats.kept == 256_KiB);
  CHECK(stats.saved == 128_KiB && stats.reclaimable == Bytes{});
  CHECK(test.pool->shared(test.a->reservation(), {1}) && test.pool->shared(test.b->reservation(), {5}));
  CHECK(!test.pool->shared(test.a->reservation(), {0}) && !test.pool->shared(test.b->reservation(), {0}));
  CHECK(test.pool->mapped(test.b->reservation()) == 128_KiB);
  share(*test.b, 5, *test.a, 1, 2);  // it is there: nothing happens
  CHECK(test.pool->stats().saved == 128_KiB);
  test.pool->check();
}

TEST(a_page_has_many_aliases_also_in_its_own_reservation) {
  Shared test;
  share(*test.a, 10, *test.a, 1, 1);
  share(*test.b, 0, *test.a, 10, 1);  // of an alias
  test.pool->check();
  CHECK(test.pool->stats().saved == 64_KiB * 4 && test.pool->stats().mapped == 256_KiB);
  byte_of(*test.b, 0) = 99;
  CHECK(byte_of(*test.a, 1) == 99 && byte_of(*test.a, 10) == 99 && byte_of(*test.b, 5) == 99);
  unkeep(*test.a, 1, 1);
  drain(test);
  unkeep(*test.b, 5, 1);
  drain(test);
  CHECK(byte_of(*test.a, 10) == 99 && byte_of(*test.b, 0) == 99);
  CHECK(test.pool->stats().saved == 64_KiB * 2);
}

TEST(what_nobody_keeps_of_a_shared_page_is_unmapped_and_the_others_stay) {
  Shared test;
  unkeep(*test.b, 5, 2);
  CHECK(state_of(*test.b, 5) == VirtualState::retiring && test.pool->stats().kept == 256_KiB);
  drain(test);
  CHECK(state_of(*test.b, 5) == VirtualState::unmapped && byte_of(*test.a, 1) == 1);
  CHECK(test.pool->stats().saved == Bytes{} && test.pool->stats().free == Bytes{});
  CHECK(!test.pool->shared(test.a->reservation(), {1}));
  unkeep(*test.a, 0, 4);  // its own again: it stays mapped
  drain(test);
  CHECK(test.pool->mapped(test.a->reservation()) == 256_KiB);
  CHECK(test.pool->stats().reclaimable == 256_KiB);
}

TEST(memory_is_free_with_the_last_that_is_unmapped_in_either_order) {
  for (const bool source_first : {true, false}) {
    Shared test;
    Lease& first = source_first ? *test.a : *test.b;
    Lease& last = source_first ? *test.b : *test.a;
    retire(first, source_first ? 1 : 5, 2);
    drain(test);
    CHECK(test.pool->stats().free == Bytes{} && test.pool->stats().mapped == 256_KiB);
    CHECK(byte_of(last, source_first ? 6 : 2) == 2);
    retire(last, source_first ? 5 : 1, 2);
    drain(test);
    CHECK(test.pool->stats().free == 128_KiB && test.pool->stats().mapped == 128_KiB);
    test.a.reset();
    test.b.reset();
    require_nothing_left(test);
  }
}

TEST(both_at_once_free_the_memory_once) {
  Shared test;
  retire(*test.a, 0, 4);
  retire(*test.b, 5, 2);
  test.pool->check();
  CHECK(test.pool->reclaiming().obtainable({}) == (4_MiB).count);
  drain(test);
  CHECK(test.pool->stats().free == 256_KiB && test.pool->stats().saved == Bytes{});
}

TEST(a_page_whose_last_one_is_still_shared_is_mapped_anew_elsewhere) {
  TestPool test(4_MiB);
  auto a = test.reserve(1_MiB);
  std::array<std::shared_ptr<Lease>, 5> others;
  map(*a, 0, 2);
  byte_of(*a, 1) = 200;
  for (std::uint32_t i = 0; i < others.size(); ++i) {
    byte_of(*a, 0) = static_cast<unsigned char>(i);
    others[i] = test.reserve(64_KiB * (i + 1));
    share(*others[i], i, *a, 0, 1);
    unkeep(*a, 0, 1);
    map(*a, 0, 1);  // waits until the one before is unmapped
    test.pool->check();
    CHECK(!test.pool->shared(a->reservation(), {0}));
  }
  byte_of(*a, 0) = 100;
  for (std::uint32_t i = 0; i < others.size(); ++i) CHECK(byte_of(*others[i], i) == i);
  CHECK(byte_of(*a, 1) == 200);
  CHECK(test.pool->stats().mapped == 64_KiB * 7 && test.pool->stats().saved == Bytes{});
  for (const std::size_t i : {2, 0, 4, 1}) {
    others[i].reset();
    test.pool->trim(64_KiB);
    test.pool->check();
  }
  retire(*a, 0, 2);
  drain(test);
  map(*a, 0, 2);
  test.pool->check();
  a.reset();
  others[3].reset();
  require_nothing_left(test);
}

TEST(an_alias_waits_for_its_own_fence_only) {
  Shared test;
  test.pool->epochs().step({});
  unkeep(*test.b, 5, 2, test.pool->epochs().fence());
  unkeep(*test.a, 1, 1);
  drain(test);
  CHECK(state_of(*test.a, 1) == VirtualState::unmapped && state_of(*test.b, 5) == VirtualState::retiring);
  CHECK(byte_of(*test.b, 5) == 1 && test.pool->stats().free == Bytes{});
  test.pool->epochs().end({});
  finish_work();
  drain(test);
  CHECK(test.pool->stats().free == 64_KiB && byte_of(*test.a, 2) == 2);
}

TEST(a_shared_page_does_not_come_back_to_who_gave_it_up) {
  Shared test;
  test.pool->epochs().step({});
  unkeep(*test.a, 1, 2, test.pool->epochs().fence());
  CHECK_THROWS(Error, "still open", map(*test.a, 1, 1));
  CHECK_THROWS(Error, "still open", share(*test.a, 1, *test.b, 5, 1));
  test.pool->check();
  test.pool->epochs().end({});
  map(*test.a, 1, 1);
  byte_of(*test.a, 1) = 44;
  CHECK(byte_of(*test.b, 5) == 1);
  share(*test.a, 2, *test.b, 6, 1);
  CHECK(byte_of(*test.a, 2) == 2);
  test.pool->check();
}

TEST(an_idle_reservation_with_shared_pages_is_not_adopted) {
  Shared test;
  const Address base = test.a->base();
  test.a.reset();
  auto other = test.reserve(1_MiB);
  CHECK(other->base() != base && test.pool->counters().reservations_adopted.get() == 0);
  unkeep(*test.b, 5, 2);
  drain(test);
  auto again = test.reserve(1_MiB);  // now it is nobody else's
  CHECK(again->base() == base && test.pool->counters().reservations_adopted.get() == 1);
  CHECK(byte_of(*again, 1) == 1);
  test.pool->check();
}

TEST(what_cannot_be_shared_is_refused) {
  Shared test;
  auto other_kind = test.reserve(1_MiB, 1, 1);
  auto other_size = test.pool->reserve(
      {.page_bytes = 128_KiB, .extent_bytes = 1_MiB, .extents = 1, .kind = {0}, .longest = {}});
  map(*other_kind, 0, 1);
  map(*other_size, 0, 1);
  map(*test.b, 0, 1);
  const PoolStats before = test.pool->stats();
  CHECK_THROWS(InvalidArgument, "kept", share(*test.b, 8, *test.a, 3, 2));  // the second is not mapped
  CHECK_THROWS(InvalidArgument, "same kind", share(*test.b, 8, *other_kind, 0, 1));
  CHECK_THROWS(InvalidArgument, "same kind and size", share(*test.b, 8, *other_size, 0, 1));
  CHECK_THROWS(InvalidArgument, "not mapped", share(*test.b, 0, *test.a, 0, 1));
  CHECK_THROWS(InvalidArgument, "not mapped", share(*test.b, 4, *test.a, 2, 2));  // 5 is another's
  CHECK_THROWS(InvalidArgument, "", share(*test.b, 8, *test.a, 16, 1));           // beyond the end
  const PageRange one{{0}, {1}};
  MapOptions fewer;
  fewer.source = {&test.a->reservation(), std::span(&one, 1)};
  CHECK_THROWS(InvalidArgument, "as many", map(*test.b, 8, 2, fewer));
  unkeep(*test.a, 0, 1);
  CHECK_THROWS(InvalidArgument, "kept", share(*test.b, 8, *test.a, 0, 1));
  test.pool->check();
  const PoolStats after = test.pool->stats();
  CHECK(after.mapped == before.mapped && after.saved == before.saved && after.created == before.created);
  CHECK(state_of(*test.b, 8) == VirtualState::unmapped && state_of(*test.b, 4) == VirtualState::unmapped);
}

TEST(a_lost_driver_call_leaves_no_alias) {
  std::int64_t failures = 0;
  for (const std::int64_t times : {1, 2})  // twice: the undoing fails, too
    for (std::int64_t n = 1; n < 20; ++n) {
      Shared test;
      const PoolStats before = test.pool->stats();
      test.faults->fail_at(n, times, Fault::error);
      bool failed = false;
      try {
        share(*test.b, 10, *test.a, 0, 3);
      } catch (const DriverError&) {
        failed = true;
      }
      test.faults->fail_at(0, 0, Fault::error);
      test.pool->check();
      if (!failed) break;
      ++failures;
      test.pool->reclaiming().drain_retired(true);
      test.pool->check();
      const PoolStats after = test.pool->stats();
      CHECK(after.mapped == before.mapped && after.kept == before.kept && after.saved == before.saved);
      CHECK(after.created == before.created && after.free == before.free);
      CHECK(state_of(*test.b, 10) == VirtualState::unmapped && byte_of(*test.b, 5) == 1);
      share(*test.b, 10, *test.a, 0, 3);
      CHECK(byte_of(*test.b, 12) == 2);
      test.a.reset();
      test.b.reset();
      require_nothing_left(test);
    }
  CHECK(failures >= 4);
}

/// What was in the way of some aliases could not be unmapped at once.
TEST(who_shares_again_after_a_failure_keeps_all) {
  std::int64_t failures = 0;
  for (std::int64_t n = 1; n < 20; ++n) {
    Shared test;
    map(*test.b, 11, 2);
    retire(*test.b, 11, 2);
    test.faults->fail_at(n, 1, Fault::error);
    try {
      share(*test.b, 10, *test.a, 0, 3);
    } catch (const DriverError&) {
      ++failures;
    }
    const bool failed = !test.faults->last_failed().empty();
    test.faults->fail_at(0, 0, Fault::error);
    test.pool->check();
    share(*test.b, 10, *test.a, 0, 3);
    for (std::uint32_t i = 0; i < 3; ++i) {
      CHECK(test.b->reservation().table[{10 + i}].kept());
      CHECK(byte_of(*test.b, 10 + i) == i);
    }
    test.pool->check();
    if (!failed) return CHECK(failures >= 3);
  }
  CHECK(!"it fails for ever");
}

TEST(an_alias_that_the_driver_does_not_unmap_keeps_the_memory) {
  for (std::int64_t n = 1; n < 10; ++n) {
    Shared test;
    retire(*test.a, 1, 2);
    retire(*test.b, 5, 2);
    test.faults->fail_at(n, 1, Fault::error);
    try {
      test.pool->reclaiming().drain_retired();
    } catch (const DriverError&) {
    }
    const bool failed = !test.faults->last_failed().empty();
    test.faults->fail_at(0, 0, Fault::error);
    test.pool->check();
    CHECK(failed == (test.pool->stats().free != 128_KiB));
    test.pool->reclaiming().drain_retired(true);
    test.pool->check();
    CHECK(test.pool->stats().free == 128_KiB && test.pool->stats().mapped == 128_KiB);
    if (!failed) return;
  }
  CHECK(!"it fails for ever");
}

TEST(without_memory_for_the_books_nothing_is_shared) {
  if (on_cuda()) return;  // the stand-in's own books need memory, too
  bool failed = true;
  int n = 0;
  while (failed && ++n < 100) {
    Shared test;
    failed = is_refused(n, [&] { share(*test.b, 10, *test.a, 0, 3); });
    test.pool->check();
    CHECK(test.pool->stats().saved == 64_KiB * (failed ? 2 : 5));
    retire(*test.a, 0, 4);  // with whatever the failure has left behind
    drain(test);
    test.a.reset();
    test.b.reset();
    require_nothing_left(test);
  }
  CHECK(n > 5 && n < 100);
}
