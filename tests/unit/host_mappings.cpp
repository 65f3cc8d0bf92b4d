// The host driver when the process has hardly any memory mappings left: they are counted, others use them
// up, and the system refuses one call after another.
#include "driver/host_mappings.h"

#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <cstdlib>
#include <string>
#include <utility>
#include <vector>

#include "base/error.h"
#include "check.h"
#include "driver/checked_driver.h"
#include "driver/host_driver.h"
#include "memory/pool.h"

using namespace vmm;

namespace {

// Which system calls of this executable fail with ENOMEM: none before `first`, and from there so many.
std::atomic<int> calls{0};
std::atomic<int> first{0};
std::atomic<int> failing{0};

bool fails() {
  const int call = ++calls;
  if (first == 0 || call < first || call >= first + failing) return false;
  errno = ENOMEM;
  return true;
}

struct Failing {
  Failing(int from, int count) {
    calls = 0;
    failing = count;
    first = from;
  }
  ~Failing() { first = 0; }
  bool reached() const { return calls >= first; }
};

}  // namespace

extern "C" {
void* mmap(void* start, size_t size, int access, int flags, int fd, off_t offset) noexcept {
  if (fails()) return MAP_FAILED;
  return reinterpret_cast<void*>(syscall(SYS_mmap, start, size, access, flags, fd, offset));
}
int munmap(void* start, size_t size) noexcept {
  return fails() ? -1 : static_cast<int>(syscall(SYS_munmap, start, size));
}
int mprotect(void* start, size_t size, int access) noexcept {
  return fails() ? -1 : static_cast<int>(syscall(SYS_mprotect, start, size, access));
}
int madvise(void* start, size_t size, int advice) noexcept {
  return fails() ? -1 : static_cast<int>(syscall(SYS_madvise, start, size, advice));
}
}

namespace {

struct HostPool {
  HostPool() {
    PoolOptions options;
    options.arena_bytes = 8_GiB;
    auto driver = std::make_unique<CheckedDriver>(std::make_unique<HostDriver>("vmm-test"));
    pool = Pool::make(std::move(driver), budget, std::make_shared<RealClock>(), options);
  }

  std::shared_ptr<Lease> mapped(std::uint64_t extents) {
    auto lease = pool->reserve({.page_bytes = 4_KiB, .extent_bytes = 64_KiB, .extents = extents});
    std::vector<PageRange> ranges;
    for (std::uint32_t i = 0; i < extents; ++i) ranges.push_back({{i * 16}, {2}});
    pool->map(lease->reservation(), ranges, {});
    return lease;
  }

  std::shared_ptr<LocalBudget> budget = std::make_shared<LocalBudget>(512_MiB);
  std::shared_ptr<Pool> pool;
};

/// All mappings that are left to the process, until it dies.
class Filler {
 public:
  Filler() {
    const std::size_t page = 4096;
    pages_ = host::most_mappings().count + 1000;
    start_ = static_cast<char*>(
        mmap(nullptr, pages_ * page, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0));
    for (std::size_t i = 1; i < pages_; i += 2)
      if (mprotect(start_ + i * page, page, PROT_READ) != 0) return;
  }
  ~Filler() { munmap(start_, pages_ * 4096); }

 private:
  char* start_;
  std::size_t pages_;
};

}  // namespace

TEST(the_count_is_what_the_system_counts) {
  constexpr std::int64_t allowance = 16;  // the heap's, and what a run of neighbouring windows merges
  HostPool test;
  host::MappingCount& count = host::MappingCount::of_process();
  count.count();
  auto excess = [&] {
    return static_cast<std::int64_t>(count.used()) -
           static_cast<std::int64_t>(*host::count_process_mappings());
  };
  auto lease = test.mapped(500);
  CHECK(std::abs(excess()) <= allowance);
  CHECK(count.used() > 1000);
  lease.reset();
  CHECK(test.pool->trim({~std::uint64_t{0}}) == 8_KiB * 500);
  CHECK(std::abs(excess()) <= allowance);
}

TEST(a_reservation_takes_its_gaps_along) {
  HostDriver driver("vmm-test");
  const host::MappingCount& count = host::MappingCount::of_process();
  const std::uint64_t before = count.used();
  const Address base = driver.reserve(64_KiB * 4, 64_KiB);
  driver.gaps()->set_gap(base, 64_KiB, Gap::zeros);
  CHECK(count.used() == before + 2);
  {
    Failing failure(1, 1'000'000);
    CHECK_THROWS(DriverError, "free_reservation", driver.free_reservation(base, 64_KiB * 4));
  }
  const PageMapping entry{base, driver.create(64_KiB, {}), 64_KiB};
  driver.map(std::span(&entry, 1));
  std::size_t done = 0;
  driver.unmap(std::span(&entry, 1), done);
  CHECK(*reinterpret_cast<const char*>(base.value) == 0);  // or it is no gap of zeros any more
  driver.release(entry.page);
  const std::uint64_t with_gap = count.used();
  driver.free_reservation(base, 64_KiB * 4);
  CHECK(count.used() == with_gap - 2);
}

TEST(a_count_that_cannot_be_made_leaves_the_last_one) {
  HostPool test;
  host::MappingCount& count = host::MappingCount::of_process();
  count.count();
  const std::uint64_t used = count.used();
  rlimit files{};
  getrlimit(RLIMIT_NOFILE, &files);
  const rlimit none{0, files.rlim_max};
  setrlimit(RLIMIT_NOFILE, &none);
  CHECK(!host::count_process_mappings());
  count.count();
  CHECK(count.used() == used);
  CHECK_THROWS(MappingLimit, "max_map_count", count.require(static_cast<std::int64_t>(count.most().count)));
  setrlimit(RLIMIT_NOFILE, &files);
}

TEST(the_variable_is_a_whole_number_or_refused) {
  for (const char* bad : {"abc", "0", "12GiB", "1e5", "", " 5", "+5", "-5", "5 ", "99999999999999999999"}) {
    setenv("VMM_MAX_MAPPINGS", bad, 1);
    CHECK_THROWS(InvalidArgument, "VMM_MAX_MAPPINGS is '" + std::string(bad) + "'; expected",
                 host::most_mappings());
  }
  setenv("VMM_MAX_MAPPINGS", "1234", 1);
  const host::MostMappings lower = host::most_mappings();
  CHECK(lower.count == 1234 && lower.by_variable());
  CHECK(lower.advice().find("VMM_MAX_MAPPINGS") != std::string::npos);
  setenv("VMM_MAX_MAPPINGS", "4000000000000000000", 1);
  const host::MostMappings higher = host::most_mappings();
  unsetenv("VMM_MAX_MAPPINGS");
  const host::MostMappings system = host::most_mappings();
  CHECK(higher.count == system.count && !higher.by_variable() && !system.by_variable());
  CHECK(system.advice().find("vm.max_map_count") != std::string::npos);
}

TEST(idle_mappings_are_given_up_before_any_is_refused) {
  HostPool test;
  auto idle = test.mapped(12'000);
  idle.reset();
  auto other = test.mapped(10'000);  // of another shape
  auto third = test.mapped(9'000);
  third.reset();
  for (int i = 0; i < 6; ++i) test.mapped(11'000 + i);
  CHECK(test.pool->stats().kept == 8_KiB * 10'000);
  CHECK_THROWS(MappingLimit, "max_map_count", auto lease = test.mapped(30'000));
  test.pool->check();
}

TEST(what_is_mapped_is_given_back_where_others_have_used_up_all_mappings) {
  HostPool test;
  auto lease = test.mapped(300);
  auto idle = test.mapped(200);
  idle.reset();
  {
    Filler filler;
    CHECK(test.pool->trim({~std::uint64_t{0}}, true) == 8_KiB * 200);
    lease.reset();
    test.pool->close();
    CHECK(test.pool->stats().created == Bytes{});
  }
}

TEST(what_was_given_up_makes_room_for_mappings) {
  HostPool test;
  const std::uint64_t extents = host::most_mappings().count / 3;  // of two mappings each
  auto first = test.mapped(extents);
  const PageRange all{{0}, {extents * 16}};
  test.pool->retire(first->reservation(), std::span(&all, 1), {});  // and nobody has unmapped it yet
  auto second = test.mapped(extents);
  CHECK(test.pool->mapped(second->reservation()) == 8_KiB * extents);
}

TEST(close_and_trim_end_whichever_call_fails) {
  for (const int times : {1, 3, 1'000'000}) {
    for (int n = 1;; ++n) {
      HostPool test;
      test.mapped(3);
      auto held = test.mapped(4);
      bool reached = false;
      {
        Failing failure(n, times);
        try {
          test.pool->trim({~std::uint64_t{0}}, true);
        } catch (const Error&) {
        }
        test.pool->close();
        held.reset();
        reached = failure.reached();
      }
      test.pool->check();
      test.pool->reclaiming().drain_retired(true);
      test.pool->trim({~std::uint64_t{0}}, true);
      CHECK(test.pool->stats().created == Bytes{});
      if (!reached) break;
    }
  }
}
