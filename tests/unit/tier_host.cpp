// The host's tier: its slabs, and how much memory it may have.
#include <sys/resource.h>

#include <fstream>

#include "tier_fixture.h"

using namespace vmm;

namespace {

/// A machine's files, as we want them.
struct Machine {
  explicit Machine(std::uint64_t available_kib) {
    files.meminfo = directory.path() + "/meminfo";
    files.own_cgroups = directory.path() + "/own";
    files.cgroups = directory.path() + "/cgroup";
    say("meminfo", "MemTotal: 9999999 kB\nMemAvailable: " + std::to_string(available_kib) + " kB\n");
  }
  void say(const std::string& file, const std::string& text) {
    const std::filesystem::path path = directory.path() + "/" + file;
    std::filesystem::create_directories(path.parent_path());
    std::ofstream(path) << text;
  }
  void make(Bytes capacity) {
    make_host_store({.capacity = capacity, .slot = 4_KiB, .files = files}, slabs,
                    std::make_shared<RealClock>(), std::make_shared<Log>());
  }

  TestDirectory directory;
  MemoryFiles files;
  std::shared_ptr<TestSlabs> slabs = std::make_shared<TestSlabs>();
};

}  // namespace

TEST(a_host_store_is_no_larger_than_what_is_available) {
  Machine machine(400);
  machine.make(400_KiB);
  CHECK_THROWS(InvalidArgument,
               "capacity: 413696 bytes of host memory are more than there are: MemAvailable is 409600",
               machine.make(404_KiB));
  CHECK(machine.slabs->live == 0);
}

TEST(a_host_store_is_no_larger_than_any_cgroup_leaves) {
  Machine machine(4000);
  machine.say("own", "0::/inner/most\n");
  machine.say("cgroup/inner/most/memory.max", "max\n");
  machine.say("cgroup/inner/most/memory.current", "5\n");
  machine.make(400_KiB);
  machine.say("cgroup/inner/memory.max", "409600\n");
  machine.say("cgroup/inner/memory.current", "204800\n");
  machine.make(200_KiB);
  CHECK_THROWS(InvalidArgument, "inner leaves 204800", machine.make(204_KiB));
  machine.say("cgroup/memory.max", "8192\n");
  machine.say("cgroup/memory.current", "9000\n");
  CHECK_THROWS(InvalidArgument, "leaves 0", machine.make(4_KiB));
}

TEST(cgroups_of_version_1_count_too) {
  Machine machine(4000);
  machine.say("own", "3:cpu,memory:/there\n1:name=systemd:/\n");
  machine.say("cgroup/memory/memory.limit_in_bytes", "9223372036854771712\n");
  machine.say("cgroup/memory/memory.usage_in_bytes", "1\n");
  machine.make(400_KiB);
  machine.say("cgroup/memory/there/memory.limit_in_bytes", "8192\n");
  machine.say("cgroup/memory/there/memory.usage_in_bytes", "4096\n");
  machine.make(4_KiB);
  CHECK_THROWS(InvalidArgument, "there leaves 4096", machine.make(8_KiB));
}

TEST(locked_memory_is_bounded_by_its_own_limit) {
  rlimit before{};
  CHECK(getrlimit(RLIMIT_MEMLOCK, &before) == 0);
  rlimit low = before;
  low.rlim_cur = 16384;
  CHECK(setrlimit(RLIMIT_MEMLOCK, &low) == 0);
  Machine machine(4000);
  machine.make(20_KiB);
  machine.slabs->locked = true;
  machine.make(16_KiB);
  CHECK_THROWS(InvalidArgument, "RLIMIT_MEMLOCK is 16384", machine.make(20_KiB));
  CHECK(setrlimit(RLIMIT_MEMLOCK, &before) == 0);
}

TEST(a_machine_that_says_nothing_refuses_nothing) {
  Machine machine(1);
  machine.files.meminfo = "/none";
  machine.make(400_KiB);
}

TEST(every_slab_is_refused_once) {
  for (int n = 1; n <= 3; ++n) {
    StoreUnderTest made;
    made.slabs->refused = n;
    CHECK_THROWS(DriverOutOfMemory, "no slab",
                 make_host_store(host_options(10), made.slabs, std::make_shared<RealClock>(), made.log));
    CHECK(made.slabs->live == 0);
  }
}

TEST(bad_sizes_of_a_host_store_are_named) {
  Machine machine(4000);
  CHECK_THROWS(InvalidArgument, "capacity: 4095 bytes are less than one page", machine.make({4095}));
  CHECK_THROWS(InvalidArgument, "capacity: 0", machine.make({0}));
}
