#include "memory/shares.h"

#include <atomic>
#include <map>
#include <utility>

#include "base/error.h"
#include "memory/share_watcher.h"

namespace vmm {
namespace {

/// A budget with its thread.
struct Part {
  Part(const std::string& path, const ShareTerms& terms)
      : budget(path, terms, std::make_shared<RealClock>()), watcher(budget, calls) {}

  FileCalls calls;
  SharedBudget budget;
  ShareWatcher watcher;  // ends first
};

struct Parts {
  ForkGuard fork_guard;
  Mutex mutex{LockRank::shares};
  std::map<std::string, std::weak_ptr<SharedBudget>> by_path;
};

/// A child begins with none, and without the parent's lock, which another thread may have held.
Parts& parts() {
  static std::atomic<Parts*> those{new Parts};
  Parts* found = those.load();
  if (!found->fork_guard.in_child()) return *found;
  auto* fresh = new Parts;
  if (those.compare_exchange_strong(found, fresh)) return *fresh;
  delete fresh;
  return *found;
}

}  // namespace

std::shared_ptr<SharedBudget> part_of_share(const std::string& path, const ShareTerms& terms) {
  Parts& all = parts();
  std::lock_guard lock(all.mutex);
  std::weak_ptr<SharedBudget>& entry = all.by_path[path];
  if (auto part = entry.lock(); part && !part->has_left()) {
    if (part->terms() != terms)
      throw InvalidArgument(
          "share: this process is in " + path +
          " already, with another budget, minimum or priority; expected the same for all its pools");
    if (part->attach()) return part;
  }
  auto part = std::make_shared<Part>(path, terms);
  SharedBudget* budget = &part->budget;
  std::shared_ptr<SharedBudget> out(std::move(part), budget);
  entry = out;
  return out;
}

}  // namespace vmm
