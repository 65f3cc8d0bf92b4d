#include "base/thread.h"

#include <pthread.h>
#include <signal.h>

#include <utility>

namespace vmm {
namespace {

/// A new thread inherits the mask of the one that makes it.
class AllSignalsBlocked {
 public:
  AllSignalsBlocked() {
    sigset_t all;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before_);
  }
  ~AllSignalsBlocked() { pthread_sigmask(SIG_SETMASK, &before_, nullptr); }
  AllSignalsBlocked(const AllSignalsBlocked&) = delete;
  AllSignalsBlocked& operator=(const AllSignalsBlocked&) = delete;

 private:
  sigset_t before_{};
};

}  // namespace

std::thread start_thread(const char* name, std::function<void()> body, Waking waking) {
  const AllSignalsBlocked blocked;
  return std::thread([name, waking, body = std::move(body)] {
    pthread_setname_np(pthread_self(), name);
    const sched_param none{};
    if (waking == Waking::yields) pthread_setschedparam(pthread_self(), SCHED_BATCH, &none);
    body();
  });
}

}  // namespace vmm
