#include "base/fork.h"

#include <pthread.h>

#include <atomic>

#include "base/error.h"

namespace vmm {
namespace {

std::atomic<unsigned> forks{0};  // how many forks lie between the first process and this one

void count_fork() { forks.fetch_add(1, std::memory_order_relaxed); }

}  // namespace

ForkGuard::ForkGuard() {
  static const int registered = pthread_atfork(nullptr, nullptr, count_fork);
  if (registered != 0) throw Error("pthread_atfork failed: no memory for one more handler");
  made_in_ = forks.load(std::memory_order_relaxed);
}

bool ForkGuard::in_child() const noexcept { return forks.load(std::memory_order_relaxed) != made_in_; }

void ForkGuard::require_parent(const char* what) const {
  if (in_child())
    throw Forked(std::string(what) +
                 " was made before fork() and cannot be used in the child: the child has neither its "
                 "memory nor its pager thread. Make a new one, or start workers with 'spawn'.");
}

}  // namespace vmm
