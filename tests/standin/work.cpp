#include "work.h"

#include <algorithm>
#include <set>
#include <utility>

#include "state.h"

namespace standin {
namespace {

constexpr std::size_t memory_limit = 16384;  // operations remembered although they are over

/// What must run before the target can be over, the target included, in an order in which it can run.
std::vector<OperationPtr> unfinished_before(const OperationPtr& target) {
  std::map<std::uint64_t, OperationPtr> found;
  std::vector<OperationPtr> stack{target};
  while (!stack.empty()) {
    const OperationPtr operation = stack.back();
    stack.pop_back();
    if (operation->done || !found.emplace(operation->id, operation).second) continue;
    stack.insert(stack.end(), operation->before.begin(), operation->before.end());
  }
  std::vector<OperationPtr> out;
  for (auto& [id, operation] : found) out.push_back(std::move(operation));
  return out;
}

}  // namespace

bool ordered(const Operation& earlier, const OperationPtr& later) {
  if (earlier.stream == later->stream) return true;
  std::set<std::uint64_t> seen;
  std::vector<OperationPtr> stack{later->before};
  while (!stack.empty()) {
    const OperationPtr operation = stack.back();
    stack.pop_back();
    if (operation->id < earlier.id || !seen.insert(operation->id).second) continue;
    if (operation->id == earlier.id || operation->stream == earlier.stream) return true;
    stack.insert(stack.end(), operation->before.begin(), operation->before.end());
  }
  return false;
}

void Work::enqueue(const OperationPtr& operation, Lock& lock) {
  operation->id = next_id_++;
  for (const OperationPtr& earlier : operation->before) {
    if (earlier->done) continue;
    ++operation->unmet;
    earlier->after.push_back(operation);
  }
  unobserved_[operation->id] = operation;
  ++queued_;
  if (operation->unmet == 0) make_ready(operation);
  // The real queue is bounded too.
  if (queued_ > state().settings.queue_limit) wander(lock);
  if (unobserved_.size() > memory_limit && unobserved_.begin()->second->done)
    observe(OperationPtr(unobserved_.begin()->second));
}

void Work::make_ready(const OperationPtr& operation) {
  (operation->hangs && state().settings.hang ? hanging_ : ready_).push_back(operation);
}

void Work::let_end() {
  for (const OperationPtr& operation : std::exchange(hanging_, {})) ready_.push_back(operation);
  state().progress.notify_all();
}

void Work::run(std::size_t ready, Lock& lock) {
  const OperationPtr operation = ready_[ready];
  ready_[ready] = ready_.back();
  ready_.pop_back();
  if (operation->spoiled) operation->work = nullptr;
  if (operation->work && operation->host_code) {
    lock.unlock();
    in_host_code() = true;
    operation->work();
    in_host_code() = false;
    lock.lock();
  } else if (operation->work) {
    operation->work();
  }
  operation->work = nullptr;
  operation->done = true;
  operation->done_at = std::chrono::steady_clock::now();
  --queued_;
  for (const auto& waiting : operation->after)
    if (const OperationPtr later = waiting.lock(); later && --later->unmet == 0) make_ready(later);
  operation->after.clear();
  if (operation->host_knows) observe(operation);
  state().progress.notify_all();
}

bool Work::run_one(const std::vector<OperationPtr>& wanted, Lock& lock) {
  if (ready_.empty()) return false;
  if (wanted.empty() || state().chance(2)) {
    run(state().pick(ready_.size()), lock);
    return true;
  }
  for (const OperationPtr& operation : wanted) {
    const auto found = std::find(ready_.begin(), ready_.end(), operation);
    if (found == ready_.end()) continue;
    run(static_cast<std::size_t>(found - ready_.begin()), lock);
    return true;
  }
  run(state().pick(ready_.size()), lock);  // what is wanted waits for a thread that runs it now
  return true;
}

void Work::finish(const OperationPtr& target, Lock& lock) {
  std::vector<OperationPtr> wanted;
  if (!target->done) wanted = unfinished_before(target);
  while (!target->done) {
    std::erase_if(wanted, [](const OperationPtr& operation) { return operation->done; });
    if (!run_one(wanted, lock)) state().progress.wait(lock);
  }
  observe(target);
}

void Work::finish_all(Lock& lock) {
  while (queued_ > 0)
    if (!run_one({}, lock)) state().progress.wait(lock);
  while (!unobserved_.empty()) observe(OperationPtr(unobserved_.begin()->second));
}

void Work::advance(const OperationPtr& target, Lock& lock) {
  if (!target->done) run_one(unfinished_before(target), lock);
}

void Work::wander(Lock& lock) { run_one({}, lock); }

void Work::observe(const OperationPtr& target) {
  std::vector<OperationPtr> stack{target};
  while (!stack.empty()) {
    const OperationPtr operation = stack.back();
    stack.pop_back();
    if (operation->observed) continue;
    operation->observed = true;
    unobserved_.erase(operation->id);
    stack.insert(stack.end(), operation->before.begin(), operation->before.end());
    operation->before.clear();  // so that a chain does not die recursively
  }
}

}  // namespace standin
