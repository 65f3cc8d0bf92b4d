// Random courses in which sequences are parked, too, and memory is so short that they go to the tiers below.
#include "check.h"
#include "prefix_course.h"

using namespace vmm;

namespace {

bool restored_too(const CourseSums& sums) { return sums.cleaned > 0 && sums.loaded > 0 && sums.restored > 0; }

}  // namespace

TEST(any_course_that_parks_in_the_host_s_memory_loses_no_byte) {
  run_courses({.budget = 64_KiB * 20, .slots = 6, .extents = 2, .host = 16_MiB}, false, restored_too);
}

TEST(any_course_that_parks_in_a_file_loses_no_byte) {
  run_courses(
      {.budget = 64_KiB * 24, .record = Bytes{1'000}, .slots = 6, .leases = 2, .tail = {30}, .file = 16_MiB},
      false, restored_too);
}

TEST(any_course_with_tiers_that_are_too_small_loses_no_byte) {
  run_courses({.budget = 64_KiB * 20, .slots = 6, .extents = 2, .host = 64_KiB * 5, .file = 64_KiB * 7},
              false, restored_too);
}

TEST(any_course_that_parks_with_windows_loses_no_byte) {
  run_courses({.budget = 64_KiB * 20,
               .record = Bytes{1'000},
               .slots = 5,
               .leases = 2,
               .window = {65},
               .host = 16_MiB},
              false, restored_too);
}

TEST(any_course_that_parks_on_two_streams_loses_no_byte) {
  run_courses({.budget = 64_KiB * 20, .slots = 5, .extents = 2, .host = 16_MiB, .policy = "lru"}, true,
              restored_too);
}
