// Owners and quotas inside one pool.
#include <algorithm>
#include <map>
#include <random>

#include "base/error.h"
#include "check.h"
#include "tenants_fixture.h"

using namespace vmm;

TEST(a_guarantee_is_kept_free_and_above_it_a_tenant_borrows) {
  Owned test;
  const TenantId a = test.tenant("a", 4), b = test.tenant("b", 6);
  const auto of_a = test.lease(a), of_b = test.lease(b);
  CHECK(test.room(a) == 10 && test.room(b) == 12);
  map(*of_a, 0, 10);
  CHECK_THROWS(OutOfPages, "tenant 'a' is charged 655360, guaranteed 262144", map(*of_a, 10, 1));
  CHECK(test.charged(a) == 10 && test.room(a) == 0);
  map(*of_b, 0, 6);
  CHECK_THROWS(OutOfPages, "tenant 'b'", map(*of_b, 6, 1));
  test.pool->check();
  give_up(*of_a, 0, 4);
  map(*of_b, 6, 4);
  CHECK(test.charged(a) == 6 && test.charged(b) == 10 && test.pool->stats().created == page * 16);
  test.pool->check();
}

TEST(a_limit_holds_although_memory_is_free) {
  Owned test;
  const TenantId a = test.tenant("a", 2, 5);
  const auto of_a = test.lease(a);
  map(*of_a, 0, 5);
  CHECK_THROWS(OutOfPages, "limited to 327680", map(*of_a, 5, 1));
  give_up(*of_a, 0, 2);
  map(*of_a, 5, 2);
  CHECK_THROWS(OutOfPages, "", map(*of_a, 0, 1));  // it is mapped still, but may not be kept
  CHECK(test.charged(a) == 5 && test.pool->stats().kept == page * 5);
  CHECK(test.pool->stats().mapped == page * 7);
  test.pool->check();
}

TEST(what_belongs_to_nobody_has_what_is_not_guaranteed) {
  Owned test;
  const auto of_nobody = test.lease(Tenants::nobody);
  map(*of_nobody, 0, 9);
  CHECK_THROWS(OutOfPages, "others keep what tenant 'a' is to be guaranteed", test.tenant("a", 8));
  const TenantId a = test.tenant("a", 7);
  CHECK_THROWS(OutOfPages, "what belongs to no tenant is charged", map(*of_nobody, 9, 1));
  const auto of_a = test.lease(a);
  map(*of_a, 0, 7);
  test.pool->check();
  test.pool->tenancies().end(a);
  CHECK(test.charged(a) == 7 && test.pool->tenancies().figures(a).guaranteed == Bytes{});
  CHECK_THROWS(Closed, "tenant is closed", test.lease(a));
  test.pool->check();
}

TEST(bad_terms_change_nothing) {
  Owned test;
  const TenantId a = test.tenant("a", 10);
  CHECK_THROWS(InvalidArgument, "guaranteed is 458752 bytes; expected at most 393216", test.tenant("b", 7));
  CHECK_THROWS(InvalidArgument, "limit is 65536 bytes; expected at least", test.tenant("b", 2, 1));
  CHECK_THROWS(InvalidArgument, "name is 'a'; expected one that no other", test.tenant("a", 1));
  CHECK_THROWS(InvalidArgument, "name is empty", test.tenant("", 1));
  CHECK_THROWS(InvalidArgument, "budget is 589824 bytes; expected at least 655360",
               test.budget->set_limit(page * 9));
  CHECK(test.budget->limit() == page * 16);
  test.budget->set_limit(page * 10);
  test.pool->tenancies().end(a);
  test.budget->set_limit(page * 9);
  test.tenant("a", 9);
  test.pool->check();
}

TEST(what_is_borrowed_goes_first_that_of_the_lowest_priority_before_others) {
  Owned test;
  const TenantId owner = test.tenant("owner", 8), low = test.tenant("low", 2, 16, -1),
                 high = test.tenant("high", 2, 16, 1);
  const auto of_low = test.lease(low), of_high = test.lease(high), of_owner = test.lease(owner);
  map(*of_high, 0, 6);
  give_up(*of_high, 0, 6);
  map(*of_low, 0, 6);
  give_up(*of_low, 0, 6);
  map(*of_owner, 0, 4);
  map(*of_owner, 4, 3);
  CHECK(test.pool->mapped(of_low->reservation()) == page * 3);
  CHECK(test.pool->mapped(of_high->reservation()) == page * 6);
  map(*of_owner, 7, 1);
  map(*of_owner, 8, 1);
  CHECK(test.pool->mapped(of_low->reservation()) == page * 2);  // what it is guaranteed stays for now
  CHECK(test.pool->mapped(of_high->reservation()) == page * 5);
  test.pool->check();
}

TEST(work_that_is_not_over_is_charged_and_waited_for) {
  Owned test;
  const TenantId a = test.tenant("a", 4), b = test.tenant("b", 8);
  const auto of_a = test.lease(a), of_b = test.lease(b);
  map(*of_a, 0, 8);
  test.pool->epochs().step({});
  const Fence readers = test.pool->epochs().fence();
  give_up(*of_a, 0, 8, readers);
  CHECK(test.charged(a) == 8 && test.pool->stats().kept == Bytes{});
  map(*of_b, 0, 8);
  CHECK_THROWS(OutOfPages, "", map(*of_b, 8, 1));  // the epoch is open, and only its owner can close it
  test.faults->hold_events(true);
  test.pool->epochs().end({});
  CHECK(test.charged(a) == 8);
  test.faults->hold_events(false);
  map(*of_b, 8, 4);
  CHECK(test.charged(a) == 0 && test.charged(b) == 12);
  test.pool->check();
}

TEST(bytes_never_cross) {
  for (const bool whole : {true, false}) {
    Owned test;
    const TenantId a = test.tenant("a", 0), b = test.tenant("b", 0);
    auto of_a = test.lease(a);
    map(*of_a, 0, 16);
    for (std::uint32_t i = 0; i < 16; ++i) *bytes_at(*of_a, page * i + Bytes{5}) = 77;
    if (whole)
      of_a.reset();
    else
      give_up(*of_a, 0, 16);
    const auto of_b = test.lease(b);
    CHECK(test.pool->mapped(of_b->reservation()) == Bytes{});
    map(*of_b, 0, 16);
    for (std::uint32_t i = 0; i < 16; ++i) CHECK(*bytes_at(*of_b, page * i + Bytes{5}) == 0);
    CHECK(test.pool->counters().pages_zeroed.get() >= 16);
    test.pool->check();
  }
}

TEST(a_tenant_adopts_its_own_reservations_with_their_bytes) {
  Owned test;
  const TenantId a = test.tenant("a", 4);
  auto of_a = test.lease(a);
  map(*of_a, 0, 4);
  *bytes_at(*of_a, {}) = 77;
  of_a.reset();
  of_a = test.lease(a);
  CHECK(test.pool->counters().reservations_adopted.get() == 1 && *bytes_at(*of_a, {}) == 77);
  auto another = test.lease(a);
  test.pool->tenancies().end(a);
  of_a.reset();
  CHECK_THROWS(Closed, "tenant is closed", test.lease(a));  // although there is one to adopt
  another.reset();
  const TenantId again = test.tenant("a", 4);
  CHECK(again != a);
  of_a = test.lease(again);
  CHECK(test.pool->counters().reservations_adopted.get() == 1);
  map(*of_a, 0, 16);
  CHECK(*bytes_at(*of_a, {}) == 0);
  test.pool->check();
}

TEST(a_pool_has_so_many_tenants_and_no_more) {
  Owned test;
  for (std::size_t i = 0; i < Tenants::most; ++i) test.tenant(std::to_string(i).c_str(), 0);
  CHECK_THROWS(InvalidArgument, "pool: it has 64 tenants", test.tenant("one more", 0));
  test.pool->check();
}

TEST(what_is_announced_stays_within_what_could_be_kept) {
  Owned test;
  const TenantId a = test.tenant("a", 4), b = test.tenant("b", 10);
  const auto of_a = test.lease(a), of_b = test.lease(b);
  MapOptions announced;
  announced.need = Need::announced;
  map(*of_a, 0, 4);
  map(*of_a, 4, 2, announced);
  CHECK_THROWS(OutOfPages, "tenant 'a'", map(*of_a, 6, 1, announced));
  CHECK(test.charged(a) == 4 && test.room(a) == 2);
  map(*of_b, 0, 12);  // it borrows what is announced there
  CHECK(test.pool->mapped(of_a->reservation()) == page * 4);
  test.pool->check();
}

TEST(pages_are_not_shared_between_tenants) {
  Owned test;
  const auto of_a = test.lease(test.tenant("a", 1)), of_b = test.lease(test.tenant("b", 1));
  map(*of_a, 0, 1);
  const PageRange one{{0}, {1}};
  MapOptions options;
  options.source = {&of_a->reservation(), std::span(&one, 1)};
  CHECK_THROWS(InvalidArgument, "source: expected pages of the same tenant", map(*of_b, 0, 1, options));
  test.pool->check();
}

/// Random courses of four owners against a model that knows only who keeps which pages, and until when.
TEST(random_courses_keep_every_promise) {
  for (unsigned seed = 1; seed <= 60; ++seed) {
    Owned test;
    std::mt19937 random(seed);
    const auto pick = [&](unsigned n) { return random() % n; };
    struct Model {
      TenantId id;
      std::uint64_t guaranteed, limit;
      std::shared_ptr<Lease> lease;
      std::map<std::uint32_t, bool> kept{};  // page: whether it was ever written
      std::uint64_t waits = 0;               // pages whose readers are in the open epoch
    };
    std::vector<Model> all;
    std::uint64_t left = 16;
    all.push_back({Tenants::nobody, 0, 1'000, nullptr});
    for (const char* name : {"a", "b", "c"}) {
      const std::uint64_t guaranteed = pick(static_cast<unsigned>(std::min<std::uint64_t>(left, 7)) + 1);
      left -= guaranteed;
      const std::uint64_t limit = guaranteed + pick(12);
      all.push_back(
          {test.tenant(name, guaranteed, limit, static_cast<int>(pick(3))), guaranteed, limit, nullptr});
    }
    for (Model& each : all) each.lease = test.lease(each.id, 24);
    const auto charged = [](const Model& each) { return each.kept.size() + each.waits; };
    const auto promised = [&](const Model* but) {
      std::uint64_t sum = 0;
      for (const Model& each : all)
        if (&each != but) sum += std::max<std::uint64_t>(each.guaranteed, charged(each));
      return sum;
    };
    Fence readers;
    const auto end_of_work = [&] {  // of all epochs but one that has just begun
      while (!test.pool->epochs().complete(readers)) test.pool->epochs().poll();
      for (Model& each : all) each.waits = 0;
    };
    for (int i = 0; i < 200; ++i) {
      Model& who = all[pick(4)];
      const std::uint32_t first = pick(24);
      const std::uint64_t count = 1 + pick(std::min(6U, 24 - first));
      const auto mark = static_cast<unsigned char>(10 + who.id.value);
      if (pick(2) == 0) {
        std::uint64_t more = 0;
        for (std::uint32_t at = first; at < first + count; ++at) more += !who.kept.contains(at);
        // Pages that the open epoch may read are charged already; whether these are among them only the pool
        // knows. So the model is sure only where none waits.
        const bool sure = who.waits == 0;
        const bool fits = charged(who) + more <= who.limit && charged(who) + more + promised(&who) <= 16;
        bool got = true;
        try {
          map(*who.lease, first, count);
        } catch (const OutOfPages&) {
          got = false;
        }
        if (sure && got != fits) {
          check::report(__FILE__, __LINE__, "seed " + std::to_string(seed) + ", step " + std::to_string(i));
          return;
        }
        if (!got) continue;
        for (std::uint32_t at = first; at < first + count; ++at) {
          unsigned char& byte = *bytes_at(*who.lease, page * at);
          CHECK(byte == 0 || byte == mark);  // no other's
          byte = mark;
        }
        if (who.waits != 0) {  // what waits now, the pool says; it is as before, or less
          const std::uint64_t now = test.charged(who.id);
          for (std::uint32_t at = first; at < first + count; ++at) who.kept[at] = true;
          CHECK(now >= who.kept.size() && now <= charged(who));
          who.waits = now - who.kept.size();
        } else {
          for (std::uint32_t at = first; at < first + count; ++at) who.kept[at] = true;
        }
      } else {
        const bool in_epoch = pick(3) == 0;
        if (in_epoch) {
          test.pool->epochs().step({});
          end_of_work();
          readers = test.pool->epochs().fence();
        }
        for (std::uint32_t at = first; at < first + count; ++at) {
          if (!who.kept.contains(at)) continue;
          give_up(*who.lease, at, 1, in_epoch ? readers : Fence{});
          who.kept.erase(at);
          who.waits += in_epoch;
        }
        if (pick(2) == 0) {
          test.pool->epochs().end({});
          end_of_work();
        }
      }
      test.pool->epochs().poll();
      CHECK(promised(nullptr) <= 16);
      for (const Model& each : all)
        if (test.charged(each.id) != charged(each)) {
          check::report(__FILE__, __LINE__, "seed " + std::to_string(seed) + ", step " + std::to_string(i));
          return;
        }
      test.pool->check();
    }
    test.pool->epochs().end({});
    readers = test.pool->epochs().fence();
    end_of_work();
  }
}
