// The whole engine, the pager included, in simulated time. The seed decides everything.
#include <chrono>
#include <cstdio>
#include <cstdlib>

#include "base/error.h"
#include "check.h"
#include "simulate/course.h"
#include "simulate/sim_tiers.h"

using namespace vmm;

namespace {

CourseTotals run(CourseOptions options, int iterations) {
  Course course(std::move(options));
  for (int i = 0; i < iterations; ++i) course.iterate();
  course.rest();
  return course.totals();
}

CourseTotals run(std::uint64_t seed, int iterations, bool check) {
  CourseOptions options = drawn_options(seed);
  options.check = check;
  return run(std::move(options), iterations);
}

/// A driver with a reservation of four pages, and three physical pages.
struct Bench {
  std::shared_ptr<SimClock> clock = std::make_shared<SimClock>(1);
  SimDriver driver{clock, {.contents = true}};
  Address base = driver.reserve(8_MiB, 2_MiB);
  StreamHandle stream = driver.create_stream(), other = driver.create_stream();

  PageMapping map(std::uint64_t place, PageHandle page) {
    const PageMapping mapping{base + 2_MiB * place, page, 2_MiB};
    driver.map(std::span(&mapping, 1));
    driver.set_access(std::span(&mapping, 1));
    return mapping;
  }
  PageMapping map(std::uint64_t place) { return map(place, driver.create(2_MiB, {})); }
  void unmap(const PageMapping& mapping) {
    std::size_t done = 0;
    driver.unmap(std::span(&mapping, 1), done);
  }
  std::vector<MemoryRange> bytes(Bytes from, Bytes to) const { return {{base + from, to - from}}; }
};

/// A world with four pages, and a tier with as many slots, to and from which a page takes a millisecond.
struct TierBench {
  static constexpr Nanoseconds a_page{1'000'000};
  World world;
  SimTiers tiers;
  Address base;
  int ended = 0;  // how often the tiers have said so

  explicit TierBench(SimTiersOptions options = {})
      : world({.driver = {.contents = true}, .budget = 1_GiB, .arena_bytes = 1_GiB}),
        tiers(world, completed(std::move(options))),
        base(world.driver().reserve(8_MiB, 2_MiB)) {
    tiers.serve(2_MiB, [this] { ++ended; });
    for (std::uint64_t place = 0; place < 4; ++place) map(place);
  }
  static SimTiersOptions completed(SimTiersOptions options) {
    options.tiers = {{"host", 4, 2_MiB / Bytes{1} * 1e3, 2_MiB / Bytes{1} * 1e3}};
    return options;
  }
  MemoryRange page(std::uint64_t place) const { return {base + 2_MiB * place, 2_MiB}; }
  void map(std::uint64_t place) {
    const PageMapping mapping{page(place).start, world.driver().create(2_MiB, {}), 2_MiB};
    world.driver().map(std::span(&mapping, 1));
    world.driver().set_access(std::span(&mapping, 1));
  }
  void unmap(std::uint64_t place) {
    const PageMapping mapping{page(place).start, world.driver().page_at(page(place).start), 2_MiB};
    std::size_t done = 0;
    world.driver().unmap(std::span(&mapping, 1), done);
  }
  void begin(TransferKind kind, const TierPlace& to, std::uint64_t place) {
    CHECK(tiers.submit(kind, to, reinterpret_cast<std::byte*>(page(place).start.value), place));
  }
  void sleep(Nanoseconds time) { world.sleep_until(world.now() + time); }
  std::optional<Outcome> end() {
    Tiers::Ended ended_now;
    return tiers.poll(std::span(&ended_now, 1)) == 0 ? std::nullopt : std::optional(ended_now.outcome);
  }
  std::optional<Outcome> move(TransferKind kind, const TierPlace& to, std::uint64_t place) {
    begin(kind, to, place);
    sleep(a_page);
    return end();
  }
};

}  // namespace

TEST(many_seeds) {
  CourseTotals sum;
  for (std::uint64_t seed = 1; seed <= 20; ++seed) {
    try {
      const CourseTotals totals = run(seed, 200, true);
      sum.steps += totals.steps;
      sum.refused += totals.refused;
      sum.failures += totals.failures;
    } catch (const InvariantViolation& error) {
      check::report(__FILE__, __LINE__, error.what());
    }
  }
  CHECK(sum.steps > 4'000 && sum.refused > 0 && sum.failures > 0);
}

TEST(the_same_seed_takes_the_same_course) {
  const CourseTotals once = run(7, 400, true), again = run(7, 400, true);
  CHECK(once.digest == again.digest && once.stalled == again.stalled && once.steps == again.steps);
  CHECK(run(8, 400, true).digest != once.digest);
}

TEST(checking_changes_nothing) { CHECK(run(9, 400, true).digest == run(9, 400, false).digest); }

TEST(a_plain_course_is_never_refused) {
  CourseOptions options;
  options.check = true;
  options.slots = 8;
  options.cache.max_tokens = {256};
  const CourseTotals totals = run(options, 300);
  CHECK(totals.refused == 0 && totals.failures == 0 && totals.opens > 8 && totals.pages_mapped > 16);
}

TEST(unmapping_what_work_uses_is_found) {
  Bench bench;
  const PageMapping page = bench.map(0), next = bench.map(1);
  bench.driver.run(bench.stream, Nanoseconds{1'000'000}, bench.bytes(1_MiB, 2_MiB));
  bench.unmap(next);
  bench.driver.check();
  CHECK_THROWS(InvalidArgument, "still uses", bench.unmap(page));
  CHECK_THROWS(InvariantViolation, "were to be unmapped",
               bench.driver.check());  // whoever swallowed the other
}

TEST(unmapping_after_the_work_is_right) {
  Bench bench;
  const PageMapping page = bench.map(0);
  bench.driver.run(bench.stream, Nanoseconds{1'000'000}, bench.bytes({}, 2_MiB));
  bench.clock->advance(Nanoseconds{1'000'000});
  bench.unmap(page);
  bench.driver.check();
}

TEST(touching_what_is_not_mapped_is_found) {
  Bench bench;
  bench.map(0);
  const PageMapping page = bench.map(1);
  bench.driver.touch(bench.bytes({}, 4_MiB), {});
  bench.driver.require_accessible(bench.bytes({}, 4_MiB));
  CHECK_THROWS(InvariantViolation, "not mapped", bench.driver.touch(bench.bytes(3_MiB, 5_MiB), {}));
  bench.unmap(page);
  CHECK_THROWS(InvariantViolation, "not mapped", bench.driver.touch(bench.bytes({}, 3_MiB), {}));
  CHECK_THROWS(InvariantViolation, "not mapped", bench.driver.require_accessible(bench.bytes({}, 3_MiB)));
}

TEST(touching_what_is_not_accessible_is_found) {
  Bench bench;
  const PageMapping mapping{bench.base, bench.driver.create(2_MiB, {}), 2_MiB};
  bench.driver.map(std::span(&mapping, 1));
  CHECK_THROWS(InvariantViolation, "not accessible", bench.driver.touch(bench.bytes({}, 1_MiB), {}));
}

TEST(writing_what_others_have_too_is_found) {
  Bench bench;
  const PageMapping page = bench.map(0);
  bench.map(4);
  bench.driver.require_sole(bench.bytes({}, 1_MiB));
  bench.map(2, page.page);
  CHECK_THROWS(InvariantViolation, "two addresses", bench.driver.require_sole(bench.bytes({}, 1_MiB)));
  bench.driver.require_sole(bench.bytes(8_MiB, 10_MiB));
}

TEST(writing_what_another_stream_uses_is_found) {
  Bench bench;
  bench.map(0);
  bench.driver.run(bench.stream, Nanoseconds{1'000'000}, bench.bytes({}, 1_MiB));
  bench.driver.require_unused(bench.bytes({}, 1_MiB), bench.stream);
  bench.driver.require_unused(bench.bytes(1_MiB, 2_MiB), bench.other);
  CHECK_THROWS(InvariantViolation, "another stream",
               bench.driver.require_unused(bench.bytes({}, 1_MiB), bench.other));
  bench.clock->advance(Nanoseconds{1'000'000});
  bench.driver.require_unused(bench.bytes({}, 1_MiB), bench.other);
}

TEST(contents_are_what_was_written_last) {
  Bench bench;
  bench.map(0), bench.map(1), bench.map(2);
  const MemoryRange across{bench.base + 1_MiB, 2_MiB};
  bench.driver.write(across, 7);
  bench.driver.require_contents(across, 7);
  CHECK_THROWS(InvariantViolation, "holds nothing", bench.driver.require_contents({bench.base, 2_MiB}, 7));
  bench.driver.copy(bench.base + 3_MiB, bench.base + 1_MiB, 2_MiB, bench.stream);
  bench.driver.require_contents({bench.base + 1_MiB, 4_MiB}, 7);
  bench.driver.write({bench.base + 2_MiB, {1}}, 8);
  CHECK_THROWS(InvariantViolation, "holds 8", bench.driver.require_contents(across, 7));
  const MemoryRange one{bench.base + 4_MiB, {1}};
  bench.driver.zero(std::span(&one, 1), bench.stream);
  CHECK_THROWS(InvariantViolation, "holds nothing", bench.driver.require_contents({one.start, 1_MiB}, 7));
  bench.driver.require_contents({one.start + Bytes{1}, 1_MiB - Bytes{1}}, 7);
}

TEST(contents_are_those_of_the_physical_page) {
  Bench bench;
  const PageMapping first = bench.map(0);
  bench.map(1, first.page);
  bench.driver.write({bench.base, 2_MiB}, 7);
  bench.driver.require_contents({bench.base + 2_MiB, 2_MiB}, 7);
  bench.unmap(first);
  bench.map(0);
  CHECK_THROWS(InvariantViolation, "holds nothing", bench.driver.require_contents({bench.base, {1}}, 7));
}

TEST(a_page_comes_back_from_a_tier_when_its_time_has_come) {
  TierBench bench;
  const std::vector<TierPlace> places = bench.tiers.take(2);
  bench.world.driver().write(bench.page(0), 1);
  bench.begin(TransferKind::write, places[0], 0);
  bench.begin(TransferKind::write, places[1], 1);  // behind it
  bench.sleep(TierBench::a_page - Nanoseconds{1});
  CHECK(bench.ended == 0 && !bench.end());
  bench.sleep(Nanoseconds{2});
  CHECK(bench.ended == 1 && bench.end() == Outcome::done && !bench.end());
  bench.sleep(TierBench::a_page);
  CHECK(bench.ended == 2 && bench.end() == Outcome::done);
  CHECK(bench.move(TransferKind::read, places[0], 2) == Outcome::done);
  bench.world.driver().require_contents(bench.page(2), 1);
  for (const TierPlace& place : places) bench.tiers.give_back(place);
  CHECK(bench.tiers.used() == 0 && bench.tiers.pending() == 0);
  bench.tiers.check();
}

TEST(a_page_from_another_slot_is_found) {
  TierBench bench;
  const std::vector<TierPlace> places = bench.tiers.take(2);
  for (std::uint64_t i = 0; i < 2; ++i) {
    bench.world.driver().write(bench.page(i), i);
    CHECK(bench.move(TransferKind::write, places[i], i) == Outcome::done);
  }
  CHECK(bench.move(TransferKind::read, places[1], 0) == Outcome::done);
  CHECK_THROWS(InvariantViolation, "should hold 0, but holds 1",
               bench.world.driver().require_contents(bench.page(0), 0));
}

TEST(a_copy_that_is_older_than_the_page_is_found) {
  TierBench bench;
  const TierPlace place = bench.tiers.take(1)[0];
  bench.world.driver().write(bench.page(0), 1);
  CHECK(bench.move(TransferKind::write, place, 0) == Outcome::done);
  bench.world.driver().write(bench.page(0), 2);
  CHECK(bench.move(TransferKind::read, place, 0) == Outcome::done);
  CHECK_THROWS(InvariantViolation, "should hold 2, but holds 1",
               bench.world.driver().require_contents(bench.page(0), 2));
}

TEST(who_touches_a_page_while_a_tier_copies_it_is_found) {
  TierBench unmapped, written, replaced, used;
  const auto begin = [](TierBench& bench) { bench.begin(TransferKind::write, bench.tiers.take(1)[0], 0); };
  begin(unmapped);
  CHECK_THROWS(InvalidArgument, "still uses", unmapped.unmap(0));
  CHECK_THROWS(InvariantViolation, "were to be unmapped", unmapped.world.driver().check());
  begin(written);
  written.world.driver().write({written.base, {1}}, 3);
  written.sleep(TierBench::a_page);
  CHECK(written.end() == Outcome::done);
  CHECK_THROWS(InvariantViolation, "was written", written.tiers.check());
  begin(replaced);
  replaced.sleep(TierBench::a_page);  // it is over, but nobody has collected it
  replaced.unmap(0);
  replaced.map(0);
  CHECK(replaced.end() == Outcome::done);
  CHECK_THROWS(InvariantViolation, "another page", replaced.tiers.check());
  const StreamHandle stream = used.world.driver().create_stream();
  used.world.driver().run(stream, TierBench::a_page, {used.page(0)});
  begin(used);
  CHECK_THROWS(InvariantViolation, "work under way", used.tiers.check());
}

TEST(tiers_fail_only_where_they_were_told_to) {
  constexpr std::uint32_t always = 1'000'000;
  const SimFaultOptions fails{.failures_per_million = always};
  TierBench writes({.writes = fails}), reads({.reads = fails}), copies({.copies = fails});
  CHECK(writes.move(TransferKind::write, writes.tiers.take(1)[0], 0) == Outcome::failed);
  CHECK(writes.tiers.failures() == 1);
  for (TierBench* bench : {&reads, &copies}) {
    const TierPlace place = bench->tiers.take(1)[0];
    bench->world.driver().write(bench->page(0), 1);
    CHECK(bench->move(TransferKind::write, place, 0) == Outcome::done);
    CHECK(bench->move(TransferKind::read, place, 0) ==
          (bench == &reads ? Outcome::failed : Outcome::corrupt));
    CHECK_THROWS(InvariantViolation, "should hold 1",
                 bench->world.driver().require_contents(bench->page(0), 1));
    CHECK(bench->tiers.take_failure(bench->base) && !bench->tiers.take_failure(bench->base));
    bench->tiers.stop();
    CHECK(bench->move(TransferKind::read, place, 0) == Outcome::done);
    bench->world.driver().require_contents(bench->page(0), 1);
  }
}

TEST(a_slow_tier_holds_up_what_comes_after) {
  TierBench bench({.writes = {.delays_per_million = 1'000'000, .longest_delay = Nanoseconds{1'000'000'000}}});
  const std::vector<TierPlace> places = bench.tiers.take(2);
  bench.begin(TransferKind::write, places[0], 0);
  bench.tiers.stop();
  bench.begin(TransferKind::write, places[1], 1);
  bench.sleep(2 * TierBench::a_page);
  CHECK(bench.ended == 0 && !bench.end());
  CHECK(bench.world.settle());
  CHECK(bench.ended == 2 && bench.end() && bench.end());
}

TEST(who_breaks_a_rule_of_the_slots_is_found) {
  TierBench bench;
  const TierPlace place = bench.tiers.take(1)[0];
  CHECK_THROWS(InvalidArgument, "no write of it", bench.begin(TransferKind::read, place, 0));
  CHECK_THROWS(InvariantViolation, "no write of it", bench.tiers.check());
}

TEST(alarms_ring_in_their_order_and_not_too_early) {
  World world({.budget = 1_GiB, .arena_bytes = 1_GiB});
  std::vector<int> rang;
  const Nanoseconds start = world.now();
  world.at(start + Nanoseconds{20}, [&] { rang.push_back(2); });
  world.at(start + Nanoseconds{10}, [&] {
    rang.push_back(1);
    world.at(start + Nanoseconds{15}, [&] { rang.push_back(3); });
  });
  world.sleep_until(start + Nanoseconds{10});
  CHECK(rang.empty());
  world.sleep_until(start + Nanoseconds{16});
  CHECK((rang == std::vector{1, 3}));
  CHECK(world.settle());
  CHECK((rang == std::vector{1, 3, 2}));
}

TEST(courses_park_and_bring_back_what_was_written) {
  CourseTotals sum;
  for (std::uint64_t seed = 1; seed <= 60; ++seed) {
    if (!drawn_options(seed).tiers) continue;
    try {
      const CourseTotals totals = run(seed, 400, true);
      sum.parked += totals.parked;
      sum.woken += totals.woken;
      sum.restored += totals.restored;
      sum.lost += totals.lost;
      sum.tier_failures += totals.tier_failures;
      sum.pages_back += totals.pages_back;
    } catch (const InvariantViolation& error) {
      check::report(__FILE__, __LINE__, error.what());
    }
  }
  CHECK(sum.parked > 500 && sum.woken > 300 && sum.restored > 10 && sum.lost > 10);
  CHECK(sum.tier_failures > 100 && sum.pages_back > 5'000);
}
