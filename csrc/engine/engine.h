// A pool, its pager and the pager's thread: what one device's users share.
#pragma once

#include <memory>

#include "base/lock.h"
#include "engine/pager.h"
#include "engine/pager_thread.h"

namespace vmm {

class Engine {
 public:
  Engine(std::shared_ptr<Pool> pool, PagerOptions options, bool with_thread)
      : pool_(std::move(pool)),
        pager_(std::make_shared<Pager>(pool_, options)),
        thread_(with_thread ? std::make_unique<PagerThread>(pager_) : nullptr) {}

  ~Engine() {
    // In a forked child the thread is not there, and its condition variable would wait for it for ever.
    if (pool_->fork_guard().in_child()) (void)thread_.release();
  }
  Engine(const Engine&) = delete;
  Engine& operator=(const Engine&) = delete;

  const std::shared_ptr<Pool>& pool() const noexcept { return pool_; }
  const std::shared_ptr<Pager>& pager() const noexcept { return pager_; }

  /// Stops the pager and gives back what nobody uses. Leases, and tensors over them, stay valid. With
  /// `patience` it waits for the driver no longer than this, twice; what it leaves is logged.
  void close(Nanoseconds patience = Nanoseconds::max()) {
    pool_->fork_guard().require_parent("this pool");
    {
      std::lock_guard lock(mutex_);
      if (thread_ && patience != Nanoseconds::max() && !thread_->stop(patience)) {
        (void)thread_.release();  // its thread still uses it
        pool_->log().write(LogLevel::warning, "closed although the pager waits for the driver");
      }
      thread_.reset();
    }
    pool_->close(patience);
  }

 private:
  std::shared_ptr<Pool> pool_;
  std::shared_ptr<Pager> pager_;
  Mutex mutex_{LockRank::engine};
  std::unique_ptr<PagerThread> thread_;
};

}  // namespace vmm
