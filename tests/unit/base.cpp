// What every layer uses: counts with units, clocks, the log, errors, and the check for a forked child.
#include <pthread.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/counters.h"
#include "base/error.h"
#include "base/fork.h"
#include "base/log.h"
#include "base/thread.h"
#include "check.h"
#include "manual_clock.h"

using namespace vmm;

TEST(counts_add_scale_and_compare) {
  CHECK(2_MiB + 64_KiB == Bytes{2162688});
  CHECK(2_MiB / 64_KiB == 32);
  CHECK(64_KiB * 3 == Bytes{196608});
  CHECK(round_up(Bytes{1}, 4_KiB) == 4_KiB);
  CHECK(round_up(8_KiB, 4_KiB) == 8_KiB);
  CHECK(!PageIndex{}.valid() && PageIndex{0}.valid());
  CHECK(is_power_of_two(64) && !is_power_of_two(0) && !is_power_of_two(96));
}

TEST(a_manual_clock_moves_when_told) {
  ManualClock clock;
  const auto before = clock.now();
  clock.advance(Nanoseconds{5});
  CHECK(clock.now() - before == Nanoseconds{5});
}

TEST(the_real_clock_does_not_go_back) {
  RealClock clock;
  const auto before = clock.now();
  CHECK(clock.now() >= before);
}

TEST(a_full_log_drops_the_oldest) {
  Log log;
  for (int i = 0; i < 300; ++i) log.write(LogLevel::info, std::to_string(i));
  const auto records = log.drain();
  CHECK(records.size() == 256);
  CHECK(records.front().text == "44" && records.back().text == "299");
  CHECK(log.drain().empty());
}

TEST(out_of_pages_tells_the_figures) {
  const OutOfPages error({Bytes{10}, Bytes{1}, Bytes{2}, Bytes{4}}, "because");
  CHECK(std::string(error.what()) ==
        "out of pages: asked for 10 bytes, free 1, reclaimable 2, budget 4 (because)");
  CHECK(error.figures().asked == Bytes{10});
}

TEST(a_forked_child_is_told_apart) {
  const ForkGuard guard;
  CHECK(!guard.in_child());
  guard.require_parent("this");
  const pid_t child = fork();
  if (child == 0) {
    int verdict = 1;
    try {
      guard.require_parent("this pool");
    } catch (const Forked&) {
      verdict = ForkGuard().in_child() ? 2 : 0;
    }
    _exit(verdict);
  }
  int status = 0;
  waitpid(child, &status, 0);
  CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 0);
}

TEST(our_threads_do_not_preempt_whoever_wakes_them_and_take_no_signals) {
  int policy = -1;
  bool blocked = false;
  start_thread("vmm-test", [&] {
    sched_param parameters{};
    pthread_getschedparam(pthread_self(), &policy, &parameters);
    sigset_t mask;
    pthread_sigmask(SIG_BLOCK, nullptr, &mask);
    blocked = sigismember(&mask, SIGINT) == 1;
  }).join();
  CHECK(policy == SCHED_BATCH);
  CHECK(blocked);
}

TEST(a_thread_that_a_disk_waits_for_is_scheduled_as_any_other) {
  int policy = -1;
  auto ask = [&] {
    sched_param parameters{};
    pthread_getschedparam(pthread_self(), &policy, &parameters);
  };
  start_thread("vmm-test", ask, Waking::preempts).join();
  CHECK(policy == SCHED_OTHER);
}
