// A thread that takes locks in the wrong order, or calls the driver under one that forbids it, ends the
// process.
#include <sys/wait.h>
#include <unistd.h>

#include <csignal>
#include <cstdio>
#include <functional>
#include <memory>
#include <string>
#include <thread>

#include "base/lock.h"
#include "check.h"
#include "driver/checked_driver.h"
#include "driver/cuda_driver.h"
#include "driver/host_driver.h"
#include "driver/sim_driver.h"

using namespace vmm;

namespace {

struct End {
  bool aborted;
  std::string said;
};

/// Runs this in a child process. Returns how the child ended, and what it said on stderr.
End in_a_child(const std::function<void()>& body) {
  int ends[2];
  CHECK(pipe(ends) == 0);
  std::fflush(stdout);  // or the child says again what is not written yet
  const pid_t child = fork();
  if (child == 0) {
    dup2(ends[1], STDERR_FILENO);
    body();
    _exit(0);
  }
  close(ends[1]);
  End end{};
  char buffer[256];
  for (ssize_t got; (got = read(ends[0], buffer, sizeof buffer)) > 0;)
    end.said.append(buffer, static_cast<std::size_t>(got));
  close(ends[0]);
  int status = 0;
  CHECK(waitpid(child, &status, 0) == child);
  end.aborted = WIFSIGNALED(status) && WTERMSIG(status) == SIGABRT;
  return end;
}

bool says(const End& end, const char* text) { return end.said.find(text) != std::string::npos; }

struct Fixture {
  Mutex pool{LockRank::pool}, other_pool{LockRank::pool}, budget{LockRank::budget};
};

}  // namespace

TEST(a_fair_lock_goes_to_who_has_waited_longest) {
  FairMutex mutex(LockRank::slots_ahead);
  std::string order;
  mutex.lock();
  std::thread waiting([&] {
    const std::lock_guard lock(mutex);
    order += "waiting ";
  });
  while (mutex.in_line() < 2) std::this_thread::yield();
  mutex.unlock();
  {
    const std::lock_guard again(mutex);  // at once, but after the other
    order += "again";
  }
  waiting.join();
  CHECK(order == "waiting again" && mutex.in_line() == 0);
}

TEST(locks_taken_in_order_are_all_right) {
  Fixture locks;
  for (int i = 0; i < 2; ++i) {
    const std::lock_guard pool(locks.pool);
    const std::lock_guard budget(locks.budget);
  }
  std::lock_guard other_pool(locks.other_pool);  // the first is not held any more
}

TEST(locks_may_be_given_up_in_any_order) {
  Fixture locks;
  std::unique_lock pool(locks.pool), budget(locks.budget, std::defer_lock);
  budget.lock();
  pool.unlock();
  budget.unlock();
  pool.lock();
}

TEST(a_lock_taken_after_a_later_one_is_found) {
  Fixture locks;
  const End end = in_a_child([&] {
    const std::lock_guard budget(locks.budget);
    const std::lock_guard pool(locks.pool);
  });
  CHECK(end.aborted && says(end, "takes the lock pool while it holds the lock budget"));
}

TEST(two_locks_of_one_rank_are_found) {
  Fixture locks;
  const End end = in_a_child([&] {
    const std::lock_guard pool(locks.pool);
    const std::lock_guard other_pool(locks.other_pool);
  });
  CHECK(end.aborted && says(end, "takes the lock pool while it holds the lock pool"));
}

TEST(a_lock_that_is_only_tried_is_looked_at_too) {
  Fixture locks;
  const End end = in_a_child([&] {
    const std::lock_guard budget(locks.budget);
    const std::unique_lock pool(locks.pool, std::try_to_lock);
  });
  CHECK(end.aborted && says(end, "takes the lock pool while it holds the lock budget"));
}

TEST(waiting_under_a_later_lock_is_found) {
  Fixture locks;
  const End end = in_a_child([&] {
    Condition changed;
    std::unique_lock pool(locks.pool);
    const std::lock_guard budget(locks.budget);
    changed.wait_for(pool, std::chrono::milliseconds(1));
  });
  CHECK(end.aborted && says(end, "takes the lock pool while it holds the lock budget"));
}

TEST(a_condition_gives_up_the_lock_and_takes_it_again) {
  Fixture locks;
  Condition changed;
  bool told = false, seen = false;
  std::thread other([&] {
    std::unique_lock pool(locks.pool);
    changed.wait(pool, [&] { return told; });
    seen = pool.owns_lock() && !changed.wait_for(pool, std::chrono::milliseconds(1), [] { return false; });
  });
  {
    const std::lock_guard pool(locks.pool);
    told = true;
  }
  changed.notify_all();
  other.join();
  CHECK(seen);
}

TEST(a_driver_call_under_a_lock_that_forbids_it_is_found) {
  CheckedDriver driver(std::make_shared<SimDriver>(std::make_shared<SimClock>(1), SimOptions{}));
  Mutex record(LockRank::epochs_record), pool(LockRank::pool);
  {
    const std::lock_guard recording(record);
    driver.destroy_event(driver.record({}));
  }
  const End end = in_a_child([&] {
    const std::lock_guard lock(pool);
    driver.record({});
  });
  CHECK(end.aborted && says(end, "calls the driver while it holds the lock pool"));
}

TEST(what_not_every_driver_can_do_is_called_without_such_a_lock_too) {
  CheckedDriver host(std::make_shared<HostDriver>("vmm-test"));
  CheckedDriver cuda(std::make_shared<CudaDriver>(CudaOptions{.shareable = true}));
  Mutex pool(LockRank::pool);
  const Address base = host.reserve(64_KiB, 64_KiB);
  const std::function<void()> calls[] = {[&] { host.gaps()->set_gap(base, 64_KiB, Gap::zeros); },
                                         [&] { cuda.exports()->export_page({}); }};
  for (const auto& call : calls) {
    const End end = in_a_child([&] {
      const std::lock_guard lock(pool);
      call();
    });
    CHECK(end.aborted && says(end, "calls the driver while it holds the lock pool"));
  }
  host.free_reservation(base, 64_KiB);
}

TEST(waiting_for_the_gil_under_a_lock_is_found) {
  Mutex engine(LockRank::engine);
  locks::before_gil();
  const End end = in_a_child([&] {
    const std::lock_guard lock(engine);
    locks::before_gil();
  });
  CHECK(end.aborted && says(end, "waits for the GIL while it holds the lock engine"));
}
