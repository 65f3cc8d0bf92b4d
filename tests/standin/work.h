// Queued work: a graph of operations of which any that is ready may be next. Nothing runs when it is queued;
// whoever waits runs what he waits for, and by chance other things.
#pragma once

#include <chrono>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "ledger.h"
#include "trace.h"

namespace standin {

struct Touch {
  Address start = 0;
  Size size = 0;
  bool write = false;
  std::vector<Span> spans;
};

struct Operation;
using OperationPtr = std::shared_ptr<Operation>;

struct Operation {
  std::string what;
  Trace from;
  std::vector<Touch> touches;
  std::function<void()> work;
  bool host_code = false;   // runs with the lock released
  bool hangs = false;       // as long as Settings::hang
  bool host_knows = false;  // a host function: what came before it is known to be over

  std::uint64_t id = 0;
  std::uint64_t stream = 0;
  int device = 0;
  std::vector<OperationPtr> before;
  std::vector<std::weak_ptr<Operation>> after;
  int unmet = 0;
  bool done = false;
  bool spoiled = false;   // what it touches was taken away: it must not run
  bool observed = false;  // the host can know that it is over
  std::chrono::steady_clock::time_point done_at;
};

using Lock = std::unique_lock<std::mutex>;

class Work {
 public:
  void enqueue(const OperationPtr& operation, Lock& lock);
  /// Runs until the target is over, and notes that the host knows.
  void finish(const OperationPtr& target, Lock& lock);
  void finish_all(Lock& lock);
  /// One step nearer to the end of the target.
  void advance(const OperationPtr& target, Lock& lock);
  /// One step anywhere, if there is one.
  void wander(Lock& lock);
  /// Nothing hangs any longer.
  void let_end();
  /// The host has been told that it is over: so is all it waited for.
  void observe(const OperationPtr& operation);

  /// Everything that the host cannot know to be over, oldest first.
  const std::map<std::uint64_t, OperationPtr>& unobserved() const { return unobserved_; }
  std::size_t queued() const { return queued_; }

 private:
  void make_ready(const OperationPtr& operation);
  void run(std::size_t ready, Lock& lock);
  bool run_one(const std::vector<OperationPtr>& wanted, Lock& lock);

  std::uint64_t next_id_ = 1;
  std::size_t queued_ = 0;
  std::vector<OperationPtr> ready_;
  std::vector<OperationPtr> hanging_;  // would be ready
  std::map<std::uint64_t, OperationPtr> unobserved_;
};

/// Whether `later` can only run after `earlier`.
bool ordered(const Operation& earlier, const OperationPtr& later);

}  // namespace standin
