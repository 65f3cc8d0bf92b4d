// What a test has put before a call: what another thread might do just then.
#include <atomic>
#include <map>
#include <mutex>
#include <string>

#include "call.h"
#include "standin.h"

namespace standin {
namespace {

struct Before {
  void (*callback)(void*);
  void* arg;
};

struct Waiting {
  std::mutex mutex;
  std::multimap<std::string, Before> by_function;  // in the order they were added
  std::atomic<bool> any{false};
};

Waiting& waiting() {
  static auto* all = new Waiting;  // leaked, as all of State
  return *all;
}

}  // namespace

void run_before(const char* name) {
  Waiting& all = waiting();
  if (!all.any) return;
  Before next{};
  {
    const std::lock_guard lock(all.mutex);
    const auto found = all.by_function.lower_bound(name);
    if (found == all.by_function.end() || found->first != name) return;
    next = found->second;
    all.by_function.erase(found);
    all.any = !all.by_function.empty();
  }
  next.callback(next.arg);
}

}  // namespace standin

extern "C" __attribute__((visibility("default"))) void standin_before(const char* function,
                                                                      void (*callback)(void*), void* arg) {
  standin::Waiting& all = standin::waiting();
  const std::lock_guard lock(all.mutex);
  all.by_function.emplace(function, standin::Before{callback, arg});
  all.any = true;
}
