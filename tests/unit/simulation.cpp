// The whole engine, the pager included, in simulated time. The seed decides everything.
#include <chrono>
#include <cstdio>
#include <cstdlib>

#include "base/error.h"
#include "check.h"
#include "simulate/course.h"

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
  SimDriver driver{clock, {}};
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
