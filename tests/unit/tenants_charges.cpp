// What tenants are charged where they share pages, fences differ, or the budget was lowered; and what is then
// admitted.
#include <array>
#include <vector>

#include "base/error.h"
#include "check.h"
#include "engine/kv_cache.h"
#include "sharing_fixture.h"
#include "tenants_fixture.h"

using namespace vmm;

namespace {

/// Nobody needs these pages any more, but shared ones stay mapped.
void set_aside(Lease& lease, std::uint32_t first, std::uint64_t count, const Fence& until) {
  const PageRange range{{first}, {count}};
  lease.pool().set_aside(lease.reservation(), std::span(&range, 1), until);
  lease.pool().check();
}

/// All work of the test is over.
void end_all(TestPool& test) {
  test.pool->epochs().end({});
  finish_work();
  test.pool->epochs().poll();
}

/// Two leases of one tenant that share a page, and a fence that the end of an open epoch completes.
struct SharedPage : Owned {
  SharedPage() {
    map(*one, 0, 1);
    share(*other, 3, *one, 0, 1);
    pool->epochs().step({});
    readers = pool->epochs().fence();
  }
  void end_epoch() {
    end_all(*this);
    pool->reclaiming().drain_retired();
    pool->check();
  }

  TenantId owner = tenant("owner", 2);
  std::shared_ptr<Lease> one = lease(owner), other = lease(owner);
  Fence readers;
};

}  // namespace

TEST(a_shared_page_counts_once) {
  SharedPage test;
  CHECK(test.charged(test.owner) == 1);
  set_aside(*test.one, 0, 1, {});
  CHECK(test.charged(test.owner) == 1);
  set_aside(*test.other, 3, 1, {});
  CHECK(test.charged(test.owner) == 0);
  test.end_epoch();
}

TEST(a_shared_page_is_charged_until_the_readers_of_all_places_are_done) {
  for (const bool later : {false, true}) {
    SharedPage test;
    set_aside(*test.one, 0, 1, later ? Fence{} : test.readers);
    set_aside(*test.other, 3, 1, later ? test.readers : Fence{});
    CHECK(test.charged(test.owner) == 1);
    CHECK_THROWS(OutOfPages, "", map(*test.lease(Tenants::nobody), 0, 15));
    test.end_epoch();
    CHECK(test.charged(test.owner) == 0);
  }
}

TEST(a_shared_page_is_charged_while_work_reads_it_where_it_is_to_be_unmapped) {
  for (const bool first : {false, true}) {
    SharedPage test;
    if (first) retire(*test.one, 0, 1, test.readers);
    set_aside(*test.other, 3, 1, {});
    if (!first) retire(*test.one, 0, 1, test.readers);
    test.pool->check();
    CHECK(test.charged(test.owner) == 1);
    test.end_epoch();
    CHECK(test.charged(test.owner) == 0);
  }
}

TEST(a_shared_page_that_is_to_be_unmapped_everywhere_is_charged_while_work_reads_it_at_one_place) {
  for (const bool first : {false, true}) {
    SharedPage test;
    retire(*test.one, 0, 1, first ? test.readers : Fence{});
    retire(*test.other, 3, 1, first ? Fence{} : test.readers);
    CHECK(test.charged(test.owner) == 1);
    test.pool->reclaiming().drain_retired();  // what nobody reads is gone
    CHECK(test.charged(test.owner) == 1);
    test.end_epoch();
    CHECK(test.charged(test.owner) == 0);
  }
}

TEST(of_a_slot_that_is_let_go_only_what_work_reads_is_charged) {
  SharedPage test;
  map(*test.one, 1, 1);
  share(*test.other, 4, *test.one, 1, 1);
  set_aside(*test.one, 0, 2, {});
  set_aside(*test.other, 3, 1, test.readers);
  set_aside(*test.other, 4, 1, {});
  CHECK(test.charged(test.owner) == 1);
  const PageRange both{{3}, {2}};
  test.pool->let_go(test.other->reservation(), std::span(&both, 1), test.readers);
  CHECK(test.charged(test.owner) == 1);
  test.end_epoch();
  CHECK(test.charged(test.owner) == 0);
}

TEST(what_is_retired_and_over_is_not_charged_but_costs_what_it_did_when_it_is_called_back) {
  Owned test;
  const TenantId a = test.tenant("a", 0, 5);
  const auto of_a = test.lease(a);
  map(*of_a, 0, 5);
  give_up(*of_a, 0, 2);
  map(*of_a, 5, 2);
  retire(*of_a, 0, 2, {});
  CHECK(test.charged(a) == 5 && state_of(*of_a, 0) == VirtualState::retiring);
  CHECK_THROWS(OutOfPages, "tenant 'a'", map(*of_a, 0, 1));
  test.pool->check();
  give_up(*of_a, 6, 1);
  map(*of_a, 0, 1);
  CHECK(test.charged(a) == 5);
  test.pool->check();
}

TEST(what_is_retired_is_charged_while_work_uses_it_and_comes_back_for_nothing) {
  Owned test;
  const TenantId a = test.tenant("a", 0, 5);
  const auto of_a = test.lease(a);
  map(*of_a, 0, 5);
  test.pool->epochs().step({});
  retire(*of_a, 0, 2);
  CHECK(test.charged(a) == 5);
  CHECK_THROWS(OutOfPages, "tenant 'a'", map(*of_a, 5, 1));
  map(*of_a, 0, 2);
  CHECK(test.charged(a) == 5);
  test.pool->check();
  end_all(test);
}

/// A page that lies there for long is not charged because another use has come to have its number.
TEST(a_page_stays_free_of_charge_when_numbers_of_uses_come_round_again) {
  Owned test;
  const TenantId a = test.tenant("a", 0);
  const auto of_a = test.lease(a);
  map(*of_a, 0, 1);
  test.pool->epochs().step({});
  give_up(*of_a, 0, 1, test.pool->epochs().fence());
  CHECK(test.charged(a) == 1);
  end_all(test);
  CHECK(test.charged(a) == 0);
  for (int i = 0; i < 66'000; ++i) {
    test.pool->epochs().step({});
    finish_work();
    test.pool->epochs().poll();
    const Fence readers = test.pool->epochs().fence();
    map(*of_a, 1, 1);
    give_up(*of_a, 1, 1, readers);
    if (test.charged(a) != 1) {
      CHECK(!"more is charged than the page that was just given up");
      return;
    }
  }
  end_all(test);
}

TEST(under_a_budget_that_was_lowered_a_tenant_still_gets_its_guarantee) {
  Owned test;
  const TenantId a = test.tenant("a", 4), b = test.tenant("b", 4);
  const auto of_a = test.lease(a), of_nobody = test.lease(Tenants::nobody);
  map(*of_nobody, 0, 3);
  test.budget->set_limit(page * 8);  // less than what is guaranteed, and what is kept
  map(*of_a, 0, 1);
  test.pool->check();
  CHECK(test.charged(a) == 1 && test.room(b) == 1);
}

/// As a layer of a VmmCache does after it was cropped, beside an engine whose epoch is open.
TEST(growing_again_over_pages_that_an_open_epoch_reads_costs_nothing) {
  Owned test;
  const TenantId a = test.tenant("a", 0, 6);
  const auto growth = test.grow(test.lease(a), page);
  const std::vector growths{growth};
  growth->advance({5});
  test.pool->epochs().step({});
  growth->truncate({2}, {});
  CHECK(test.charged(a) == 5);
  CHECK_THROWS(OutOfPages, "limited to 393216", admit(growths, {7}));
  admit(growths, {6});
  growth->advance({6});
  CHECK(test.charged(a) == 6);
  growth->truncate({2}, {});
  end_all(test);
  CHECK(test.charged(a) == 2);
  CHECK_THROWS(OutOfPages, "limited to 393216", admit(growths, {7}));
  admit(growths, {6});
  test.pool->check();
}

/// The same with rows that are written alike, where only what each row has to itself was given up.
TEST(rows_alike_that_grow_again_over_pages_that_an_open_epoch_reads_are_charged_once) {
  Owned test;
  const TenantId a = test.tenant("a", 0, 7);
  const auto lease =
      test.pool->reserve({.page_bytes = page, .extent_bytes = page * 8, .extents = 2, .tenant = a});
  const Bytes record = page / 2;
  const auto growth = test.grow(lease, record);
  const std::vector growths{growth};
  const std::vector<std::uint32_t> like{0, 0};
  growth->advance_alike(like, {9});  // four pages for both, and one for each
  test.pool->epochs().step({});
  growth->truncate({8}, {});
  CHECK(test.charged(a) == 6);
  CHECK_THROWS(OutOfPages, "limited to 458752", admit_alike(growths, like, {13}));
  admit_alike(growths, like, {9});
  growth->advance_alike(like, {9});
  CHECK(test.charged(a) == 6);
  end_all(test);
  test.pool->check();
}

/// Else a layer would be refused when others have grown already.
TEST(growth_is_admitted_only_where_its_tenant_may_keep_what_is_mapped_ahead) {
  Owned test;
  const TenantId a = test.tenant("a", 0);
  test.tenant("b", 4);
  const auto growth = test.grow(test.lease(a), page);
  growth->advance({1});
  growth->announce({4});
  test.settle();
  const auto of_nobody = test.lease(Tenants::nobody);
  map(*of_nobody, 0, 9);
  CHECK(test.room(a) == 2 && growth->missing({4}) == Bytes{});
  const std::vector growths{growth};
  CHECK_THROWS(OutOfPages, "tenant 'a'", admit(growths, {4}));
  admit(growths, {3});
  growth->advance({3});
  test.pool->check();
}

/// Pages that are mapped ahead need no memory when they are kept, but they are charged.
TEST(a_slot_whose_pages_are_mapped_ahead_fits_only_where_its_tenant_may_keep_them) {
  Owned test;
  const TenantId a = test.tenant("a", 0);
  test.tenant("b", 4);
  const auto of_a =
      test.pool->reserve({.page_bytes = page, .extent_bytes = page * 4, .extents = 2, .tenant = a});
  KvCache cache(test.pager, {{of_a, 0, 1, page}}, 2, {.max_tokens = {4}});
  const std::uint32_t announced = cache.open({2}, {2}, {}), other = cache.open({1}, {1}, {});
  test.settle();
  const auto of_nobody = test.lease(Tenants::nobody);
  map(*of_nobody, 0, 11);
  CHECK(test.room(a) == 1 && cache.slots().missing(announced, {2}) == Bytes{});
  const std::array<std::int32_t, 2> slots{static_cast<std::int32_t>(announced),
                                          static_cast<std::int32_t>(other)};
  std::vector<std::uint32_t> fitting;
  try {
    cache.step(slots, std::array<std::int32_t, 2>{2, 1}, {});
    CHECK(!"refused");
  } catch (const OutOfPages& error) {
    fitting = error.fitting();
  }
  CHECK(fitting == std::vector<std::uint32_t>{other});
  cache.step(std::span(slots).last(1), std::array<std::int32_t, 1>{1}, {});
  test.pool->check();
  end_all(test);
}
