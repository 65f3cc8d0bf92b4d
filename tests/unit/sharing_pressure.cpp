// Shared pages where memory, or address space, is short.
#include <array>
#include <utility>

#include "base/error.h"
#include "check.h"
#include "sharing_fixture.h"

using namespace vmm;

namespace {

/// A budget of 16 pages, of which two leases share eight.
struct Short : TestPool {
  Short() : TestPool(1_MiB), a(reserve(512_KiB)), b(reserve(1_MiB)), wants(reserve(2_MiB)) {
    map(*a, 0, 8);
    write_numbers(*a, 0, 8);
    share(*b, 8, *a, 0, 8);
    pool->check();
  }
  void require_bytes(const Lease& lease, std::uint32_t first) {
    for (std::uint32_t i = 0; i < 8; ++i) {
      CHECK(state_of(lease, first + i) == VirtualState::resident);
      CHECK(byte_of(lease, first + i) == i);
    }
  }

  std::shared_ptr<Lease> a, b, wants;
};

}  // namespace

TEST(an_alias_outlives_the_reservation_of_its_source) {
  Shared test;
  const Address base = test.a->base();
  test.a.reset();
  test.pool->check();
  CHECK(test.pool->trim(1_GiB) == 128_KiB);  // what it shared with nobody
  test.pool->check();
  CHECK(byte_of(*test.b, 5) == 1 && byte_of(*test.b, 6) == 2);
  CHECK(test.pool->reclaiming().end_an_idle_reservation());
  drain(test);
  CHECK(test.pool->stats().reservations_idle == 0 && test.pool->stats().mapped == 128_KiB);
  CHECK(byte_of(*test.b, 5) == 1 && byte_of(*test.b, 6) == 2);
  auto next = test.reserve(1_MiB);
  CHECK(next->base() == base);
  map(*next, 0, 16);
  write_numbers(*next, 0, 16, 50);
  test.pool->check();
  CHECK(byte_of(*test.b, 5) == 1 && byte_of(*test.b, 6) == 2);
  next.reset();
  test.b.reset();
  require_nothing_left(test);
}

TEST(the_end_of_an_idle_reservation_leaves_what_others_use_alone) {
  Shared test;
  auto c = test.reserve(512_KiB);
  share(*c, 0, *test.a, 1, 1);
  test.a.reset();
  test.pool->epochs().step({});
  test.b.reset();  // work that is not over may use it
  test.pool->check();
  CHECK(test.pool->reclaiming().end_an_idle_reservation());
  drain(test);
  CHECK(test.pool->stats().reservations_idle == 1);
  CHECK(test.pool->mapped(c->reservation()) == 64_KiB && byte_of(*c, 0) == 1);
  CHECK(test.pool->stats().kept == 64_KiB && test.pool->stats().mapped == 128_KiB);
  CHECK(!test.pool->reclaiming().end_an_idle_reservation());
  test.pool->epochs().end({});
  finish_work();
  test.pool->epochs().poll();
  CHECK(test.pool->reclaiming().end_an_idle_reservation());
  drain(test);
  CHECK(test.pool->stats().reservations_idle == 0 && byte_of(*c, 0) == 1);
  c.reset();
  require_nothing_left(test);
}

TEST(addresses_are_taken_back_from_a_reservation_whose_pages_all_are_shared) {
  TestPool test(4_MiB);
  auto large = test.reserve(5_GiB), small = test.reserve(64_KiB);
  map(*large, 0, 1);
  byte_of(*large, 0) = 7;
  share(*small, 0, *large, 0, 1);
  large.reset();
  auto other = test.reserve(4_GiB);
  test.pool->check();
  CHECK(byte_of(*small, 0) == 7 && test.pool->stats().kept == 64_KiB);
}

TEST(aliases_that_nobody_keeps_are_reclaimed_together) {
  for (const std::uint32_t wanted : {9, 16}) {
    Short test;
    test.a.reset();
    test.b.reset();
    test.pool->check();
    CHECK(test.pool->stats().reclaimable == 512_KiB && test.pool->stats().saved == 512_KiB);
    CHECK(test.pool->reclaiming().obtainable({}) == (1_MiB).count);
    map(*test.wants, 0, wanted);
    test.pool->check();
    CHECK(test.pool->stats().kept == 64_KiB * wanted);
    const PoolStats stats = test.pool->stats();
    CHECK(stats.mapped - stats.kept == stats.saved);  // what is left is still shared
    test.wants.reset();
    require_nothing_left(test);
  }
}

TEST(what_has_aged_goes_with_its_aliases) {
  Short test;
  test.a.reset();
  test.b.reset();
  for (int i = 0; i < 3; ++i) test.pool->reclaiming().age();
  test.pool->reclaiming().give_back_aged(1_MiB);
  test.pool->check();
  CHECK(test.pool->stats().created == Bytes{} && test.pool->stats().reservations_idle == 0);
}

TEST(an_alias_that_is_kept_protects_the_page) {
  for (const bool keep_source : {true, false}) {
    Short test;
    (keep_source ? test.b : test.a).reset();
    Lease& left = keep_source ? *test.a : *test.b;
    const std::uint32_t first = keep_source ? 0 : 8;
    CHECK(test.pool->stats().kept == 512_KiB && test.pool->stats().reclaimable == Bytes{});
    map(*test.wants, 0, 8);
    CHECK_THROWS(OutOfPages, "out of pages", map(*test.wants, 0, 9));
    test.pool->check();
    CHECK(test.pool->trim(1_MiB) == Bytes{});
    test.require_bytes(left, first);
    CHECK(test.pool->reclaiming().end_an_idle_reservation());
    test.pool->check();
    test.require_bytes(left, first);
    unkeep(left, first, 8);
    map(*test.wants, 0, 16);
    test.pool->check();
  }
}

TEST(work_that_uses_one_alias_holds_the_page_back) {
  Short test;
  test.a.reset();
  test.pool->epochs().step({});
  test.b.reset();
  CHECK_THROWS(OutOfPages, "unfinished work", map(*test.wants, 0, 9));
  test.pool->check();
  CHECK(test.pool->stats().saved == 512_KiB);
  test.pool->epochs().end({});
  map(*test.wants, 0, 16);  // waits for it
  test.pool->check();
}

TEST(a_victim_that_the_driver_does_not_unmap_is_reclaimed_later) {
  for (std::int64_t n = 1; n < 40; ++n) {
    Short test;
    test.a.reset();
    test.b.reset();
    test.faults->fail_at(n, 1, Fault::error);
    try {
      map(*test.wants, 0, 16);
    } catch (const DriverError&) {
    } catch (const OutOfPages&) {
    }
    const bool failed = !test.faults->last_failed().empty();
    test.faults->fail_at(0, 0, Fault::error);
    test.pool->check();
    test.pool->reclaiming().drain_retired(true);
    test.pool->check();
    map(*test.wants, 0, 16);
    CHECK(test.pool->stats().kept == 1_MiB && test.pool->stats().saved == Bytes{});
    test.pool->check();
    if (!failed) return CHECK(n > 5);
  }
  CHECK(!"it fails for ever");
}

TEST(a_shared_page_costs_nothing_while_another_keeps_it) {
  Shared test;
  const auto cost = [&](const Lease& lease, std::uint32_t first, std::uint64_t count) {
    const PageRange range{{first}, {count}};
    return test.pool->reclaiming().cost(lease.reservation(), std::span(&range, 1), {});
  };
  const std::int64_t rest = (4_MiB - 256_KiB).count;
  CHECK(test.pool->reclaiming().obtainable({}) == rest);
  CHECK(cost(*test.a, 0, 4) == 0 && cost(*test.b, 5, 2) == 0 && cost(*test.b, 4, 3) == 65'536);
  const Reservation& idle = test.a->reservation();
  test.a.reset();  // its reservation lives on, idle
  CHECK(test.pool->reclaiming().obtainable({}) == rest + 2 * 65'536);
  const PageRange all{{0}, {4}};
  CHECK(test.pool->reclaiming().cost(idle, std::span(&all, 1), {}) == 2 * 65'536);
  CHECK(cost(*test.b, 5, 2) == 0);
}

namespace {

/// The extents [first, first + count) of the lease are used now, or nobody knows when they were.
void use(const Lease& lease, std::uint64_t first, std::uint64_t count, bool known = true) {
  {
    Pool::Needs needs(lease.pool());
    if (known)
      needs.note_use(lease.reservation(), first, count, needs.new_use());
    else
      needs.forget_use(lease.reservation(), first, count);
  }
  lease.pool().check();
}

/// Whether the page is among those that may be taken, or another stands for its content.
bool counted(const Lease& lease, std::uint32_t page) {
  return lease.reservation().table.reclaimable(Need::none).last_before(page + 1) == PageIndex{page};
}

/// Two extents each, whose first pages are one content that nobody needs.
struct Used : TestPool {
  Used() : TestPool(4_MiB), a(reserve(512_KiB, 2)), b(reserve(512_KiB, 2)) {
    map(*a, 8, 1);
    share(*b, 8, *a, 8, 1);
    share(*b, 0, *a, 8, 1);
    for (const auto& [lease, page] : {std::pair(a, 8U), std::pair(b, 8U), std::pair(b, 0U)}) {
      const PageRange one{{page}, {1}};
      pool->set_aside(lease->reservation(), std::span(&one, 1), {});
    }
    pool->check();
  }
  std::array<bool, 3> standing() const { return {counted(*a, 8), counted(*b, 8), counted(*b, 0)}; }

  std::shared_ptr<Lease> a, b;
};

using Standing = std::array<bool, 3>;

}  // namespace

TEST(what_is_set_aside_stays_mapped_and_shared_until_it_is_let_go) {
  Used test;
  CHECK(test.pool->stats().kept == Bytes{} && test.pool->stats().saved == 128_KiB);
  drain(test);
  CHECK(state_of(*test.b, 0) == VirtualState::resident && test.pool->stats().reclaimable == 64_KiB);
  const PageRange all{{0}, {16}};
  test.pool->let_go(test.b->reservation(), std::span(&all, 1), {});
  test.pool->check();
  drain(test);
  CHECK(state_of(*test.b, 0) == VirtualState::unmapped && state_of(*test.b, 8) == VirtualState::unmapped);
  CHECK(state_of(*test.a, 8) == VirtualState::resident && test.pool->stats().saved == Bytes{});
  test.pool->let_go(test.a->reservation(), std::span(&all, 1), {});  // nobody shares it: it stays
  drain(test);
  CHECK(state_of(*test.a, 8) == VirtualState::resident && test.pool->stats().reclaimable == 64_KiB);
}

TEST(the_alias_that_was_used_last_stands_for_the_content) {
  Used test;
  use(*test.b, 0, 1);
  CHECK((test.standing() == Standing{false, false, true}));
  use(*test.a, 0, 1);  // another extent of that lease
  CHECK((test.standing() == Standing{false, false, true}));
  use(*test.a, 1, 1);
  CHECK((test.standing() == Standing{true, false, false}));
  use(*test.b, 1, 1);
  CHECK((test.standing() == Standing{false, true, false}));
  use(*test.b, 1, 1, false);
  CHECK((test.standing() == Standing{true, false, false}));
  use(*test.a, 0, 2, false);
  CHECK((test.standing() == Standing{false, false, true}));
  use(*test.b, 0, 1, false);
  CHECK(test.pool->stats().reclaimable == 64_KiB);
  CHECK_THROWS(InvalidArgument, "beyond the end", use(*test.b, 1, 2));
}

TEST(who_needs_the_content_more_stands_for_it_however_long_ago_it_was_used) {
  Used test;
  use(*test.b, 1, 1);
  const PageRange page{{8}, {1}};
  {
    Pool::Needs(*test.pool).set(test.a->reservation(), std::span(&page, 1), Need::kept);
  }
  test.pool->check();
  CHECK((test.standing() == Standing{}) && test.pool->stats().kept == 64_KiB);
  use(*test.b, 0, 1);
  CHECK((test.standing() == Standing{}) && test.pool->stats().kept == 64_KiB);
  test.pool->set_aside(test.a->reservation(), std::span(&page, 1), {});
  test.pool->check();
  CHECK((test.standing() == Standing{false, false, true}) && test.pool->stats().kept == Bytes{});
}

TEST(when_who_stood_for_a_content_goes_the_next_by_use_does) {
  Used test;
  use(*test.b, 0, 1);
  use(*test.a, 1, 1);
  use(*test.b, 1, 1);
  retire(*test.b, 8, 1);
  test.pool->check();
  CHECK((test.standing() == Standing{true, false, false}));
  test.a.reset();  // its reservation is idle, and its use forgotten
  test.pool->check();
  drain(test);
  CHECK(counted(*test.b, 0));
  test.b.reset();
  require_nothing_left(test);
}
