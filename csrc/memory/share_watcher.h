// The thread of a SharedBudget.
#pragma once

#include <memory>
#include <thread>

#include "base/fork.h"
#include "memory/shared_budget.h"

namespace vmm {

/// Calls poll() when another process rings, when the budget asks for it, and every half second: a process
/// that dies rings for nobody. While there is no inotify to be had, it looks ten times a second.
class ShareWatcher {
 public:
  /// Throws DriverError where there is no eventfd, or no thread.
  explicit ShareWatcher(SharedBudget& budget, FileCalls& calls);
  ~ShareWatcher();
  ShareWatcher(const ShareWatcher&) = delete;
  ShareWatcher& operator=(const ShareWatcher&) = delete;

 private:
  void open_bell() noexcept;
  void kick() noexcept;
  void run();

  SharedBudget& budget_;
  FileCalls& calls_;
  const ForkGuard fork_guard_;
  int kicked_ = -1;  // an eventfd
  int bell_ = -1;    // an inotify
  std::atomic<bool> stop_{false};
  std::unique_ptr<std::thread> thread_;
};

}  // namespace vmm
