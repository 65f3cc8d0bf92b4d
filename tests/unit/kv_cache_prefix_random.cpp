// Random courses of sequences that begin with each other's tokens: see prefix_course.h.
#include "check.h"
#include "prefix_course.h"

using namespace vmm;

TEST(any_course_with_plenty_of_memory_finds_all_that_runs_and_mixes_nothing_up) {
  const CourseSums sums = run_courses({.record = Bytes{1'000}, .slots = 6}, false, adopted_and_aliased);
  CHECK(sums.copied == 0);
}

TEST(any_course_where_copies_are_cheap_mixes_nothing_up) {
  run_courses({.record = Bytes{2'000}, .slots = 6, .tail = {10}, .slow_maps = true}, false,
              [](const CourseSums& sums) { return sums.adopted > 0 && sums.copied > 0; });
}

TEST(any_course_with_little_memory_mixes_nothing_up) {
  run_courses({.budget = 64_KiB * 20, .slots = 5, .extents = 2}, false, adopted_and_aliased);
}

TEST(any_course_with_little_memory_in_two_leases_and_with_tails_mixes_nothing_up) {
  run_courses({.budget = 64_KiB * 24, .record = Bytes{1'000}, .slots = 5, .leases = 2, .tail = {30}});
}

TEST(any_course_with_windows_mixes_nothing_up) {
  run_courses({.record = Bytes{1'000}, .slots = 6, .leases = 2, .window = {65}});
  run_courses({.budget = 64_KiB * 20, .record = Bytes{1'000}, .slots = 5, .window = {65}});
}

TEST(any_course_on_two_streams_mixes_nothing_up) {
  run_courses({.record = Bytes{1'000}, .slots = 6}, true);
  run_courses({.budget = 64_KiB * 20, .slots = 5, .extents = 2, .slow_maps = true}, true);
}
